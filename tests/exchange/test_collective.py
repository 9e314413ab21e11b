"""Ranks that exchange rows or partial sums train as one route with all rows does."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import Case, Ranks, train_alone, train_together

SMALL = {
    "lr": {},
    "fm": {"dim": 4},
    "wide_deep": {"dim": 4, "hidden": [8, 4]},
    "deepfm": {"dim": 4, "hidden": [8, 4]},
    "dcn_v2": {"dim": 4, "hidden": [8], "cross_layers": 2, "rank": 4},
    "dlrm": {"dim": 4, "hidden": [8], "bottom": [8]},
}


@pytest.fixture(scope="module")
def ranks():
    made = Ranks(4)
    yield made
    made.close()


def joined(found: list[dict]) -> dict:
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    rows = {}
    for answer in found:
        assert not rows.keys() & answer["rows"].keys()
        rows |= answer["rows"]
    losses = {n: loss for answer in found for n, loss in answer["losses"].items()}
    return {
        "rows": rows,
        "dense": np.concatenate([answer["dense"] for answer in found]),
        "slots": [slot for answer in found for slot in answer["slots"]],
        "losses": [losses[n] for n in sorted(losses)],
    }


@pytest.mark.parametrize("model", SMALL)
def test_moved_rows_train_bitwise_as_one_process(ranks, model):
    case = Case(model, SMALL[model], "rows")
    alone = ranks.alone(train_alone, case)
    for size in (1, 2, 3, 4):
        found = joined(ranks.together(size, train_together, case))
        assert found["rows"].keys() == alone["rows"].keys()
        for key, (values, clock) in alone["rows"].items():
            np.testing.assert_array_equal(found["rows"][key][0], values)
            np.testing.assert_array_equal(found["rows"][key][1], clock)
        np.testing.assert_array_equal(found["dense"], alone["dense"])
        for a, b in zip(found["slots"], alone["slots"], strict=True):
            np.testing.assert_array_equal(a, b)
        assert found["losses"] == alone["losses"]
