"""Ranks that exchange rows or partial sums train as one route with all rows does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ranks import Case, Ranks, batches, push_and_pull, train_alone, train_together

from paceline.errors import LossError, TrainingError
from paceline.exchange.cost import Roles
from paceline.exchange.positions import load_of

SMALL = {
    "lr": {},
    "fm": {"dim": 4},
    "wide_deep": {"dim": 4, "hidden": [8, 4]},
    "deepfm": {"dim": 4, "hidden": [8, 4]},
    "dcn_v2": {"dim": 4, "hidden": [8], "cross_layers": 2, "rank": 4},
    "dlrm": {"dim": 4, "hidden": [8], "bottom": [8]},
}
PARTIALS = {"linear": "partials", "embedding": "partials"}
MIXED = {"linear": "partials", "embedding": "rows"}
FIELDS = {"linear": "rows", "embedding": "fields"}


@pytest.fixture(scope="module")
def ranks():
    made = Ranks(4)
    yield made
    made.close()


def joined(found: list[dict]) -> dict:
    """One state out of all shards', which share no row."""
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    rows, shards = {}, found[0]["plan"].shape.roles.shards
    for answer in found:
        assert not rows.keys() & answer["rows"].keys()
        rows |= answer["rows"]
    losses = {n: loss for answer in found for n, loss in answer["losses"].items()}
    return {
        "rows": rows,
        "dense": np.concatenate([found[rank]["dense"] for rank in shards]),
        "slots": np.concatenate([np.zeros(0), *(slot.reshape(-1) for rank in shards for slot in found[rank]["slots"])]),
        "losses": np.array([losses[n] for n in sorted(losses)]),
        "counted": [counted for answer in found for counted in answer["counted"]],
    }


def same(found: dict, alone: dict) -> None:
    """Bitwise: rows, their slots and clocks, dense parameters and theirs, losses and norms."""
    assert found["rows"].keys() == alone["rows"].keys()
    for key, (values, clock) in alone["rows"].items():
        np.testing.assert_array_equal(found["rows"][key][0], values)
        np.testing.assert_array_equal(found["rows"][key][1], clock)
    np.testing.assert_array_equal(found["dense"], alone["dense"])
    np.testing.assert_array_equal(found["slots"], np.concatenate([np.zeros(0), *map(np.ravel, alone["slots"])]))
    np.testing.assert_array_equal(found["losses"], alone["losses"])


def close(found: dict, alone: dict, tolerance: float = 1e-5) -> None:
    """Relative to the largest of a kind: each column of the rows (a weight or slot), dense parameters, their slots."""
    assert found["rows"].keys() == alone["rows"].keys()
    keys = list(alone["rows"])
    a, b = (np.array([state["rows"][key][0] for key in keys]) for state in (found, alone))
    assert (np.abs(a - b).max(0) <= tolerance * np.abs(b).max(0)).all()
    assert all(found["rows"][key][1].tolist() == alone["rows"][key][1].tolist() for key in keys)
    assert np.abs(found["dense"] - alone["dense"]).max(initial=0) <= tolerance * np.abs(alone["dense"]).max(initial=0)
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=tolerance)


@pytest.mark.parametrize("model", SMALL)
def test_moved_rows_train_bitwise_as_one_process(ranks, model):
    case = Case(model, SMALL[model], "rows")
    alone = ranks.alone(train_alone, case)
    for size in (1, 2, 3, 4):
        same(joined(ranks.together(size, train_together, case)), alone)


@pytest.mark.parametrize("model", SMALL)
def test_partial_sums_train_as_one_process_up_to_the_order_of_sums(ranks, model):
    updates = 100 if model in ("fm", "deepfm") else 25
    case = Case(model, SMALL[model], "substitute", updates=updates, sizes=(16, 16, 7), last=(16, 5))
    alone = ranks.alone(train_alone, case)
    found = joined(ranks.together(3, train_together, case))
    close(found, alone)
    assert all(sent.values == predicted.values for sent, predicted in found["counted"])


@pytest.mark.parametrize(
    "case",
    [
        Case("deepfm", SMALL["deepfm"], modes=PARTIALS),
        Case("wide_deep", SMALL["wide_deep"], modes=PARTIALS, singles=0),
        Case("fm", SMALL["fm"], modes=PARTIALS, bags=(), optimizer="adam"),
        Case("fm", SMALL["fm"], modes=PARTIALS, singles=0, dense=0),
        Case("deepfm", SMALL["deepfm"], modes=MIXED, reverse=True),
        Case(
            "deepfm",
            SMALL["deepfm"],
            modes={"linear": "rows", "embedding": "fields"},
            normalise="local_batch",
            optimizer="sgd",
        ),
        Case("deepfm", SMALL["deepfm"], modes=PARTIALS, roles=Roles((0, 2), (1, 2, 3))),
        Case("deepfm", SMALL["deepfm"], modes=PARTIALS, roles=Roles((3,), (0, 1, 2)), bags=()),
        Case("fm", SMALL["fm"], "substitute", roles=Roles((0, 1, 2, 3), (1,))),
    ],
    ids=lambda case: "",
)
def test_every_mixture_of_modes_and_roles_trains_as_one_process(ranks, case):
    alone = ranks.alone(train_alone, case)
    for size in (2, 4) if case.roles is None else (4,):
        found = joined(ranks.together(size, train_together, case))
        close(found, alone)
        for sent, predicted in found["counted"]:
            assert {**sent.values, "rows": 0} == {**predicted.values, "rows": 0}


@pytest.mark.parametrize("roles", [Roles((0, 2), (1, 2, 3)), Roles((0, 1), (2, 3)), Roles((1, 0), (0,))])
def test_moved_rows_are_bitwise_the_same_whoever_holds_them(ranks, roles):
    case = Case("deepfm", SMALL["deepfm"], "rows", roles=roles, reverse=True, updates=6, optimizer="adam")
    same(joined(ranks.together(max(roles.ranks) + 1, train_together, case)), ranks.alone(train_alone, case))


def test_the_tail_in_bf16_is_bitwise_the_same_and_close_under_substitution(ranks):
    case = Case("dcn_v2", SMALL["dcn_v2"], "rows", precision="bf16")
    alone = ranks.alone(train_alone, case)
    same(joined(ranks.together(2, train_together, case)), alone)
    found = joined(ranks.together(2, train_together, Case(**{**vars(case), "exchange": "substitute"})))
    np.testing.assert_allclose(found["losses"][:, 0], np.array(alone["losses"])[:, 0], rtol=1e-2)


def test_running_statistics_are_those_of_the_worker(ranks):
    """One worker, so that it sees all batches as the one process does."""
    options = {"normalise": "local_moving", "updates": 10, "roles": Roles((1, 2), (0,))}
    moved = Case("deepfm", SMALL["deepfm"], "rows", **options)
    same(joined(found := ranks.together(3, train_together, moved)), ranks.alone(train_alone, moved))
    summed = ranks.together(3, train_together, Case("deepfm", SMALL["deepfm"], "substitute", **options))
    assert found[0]["statistics"].shape[0] > 0
    assert found[1]["statistics"] is None
    np.testing.assert_allclose(summed[0]["statistics"], found[0]["statistics"], rtol=1e-4, atol=1e-6)


def test_measured_bytes_of_moved_rows_are_those_predicted(ranks):
    """Of the mean number of distinct ids, over the run."""
    case = Case("fm", {"dim": 8}, "rows", sizes=(64, 64, 64), last=(64, 64, 64), singles=8)
    found = joined(ranks.together(3, train_together, case))
    sent, predicted = (sum(pair[i].values["rows"] for pair in found["counted"]) for i in (0, 1))
    assert sent == pytest.approx(predicted, rel=0.05)
    ids, expected = (sum(pair[i].ids["ids"] for pair in found["counted"]) for i in (0, 1))
    assert ids == pytest.approx(expected, rel=0.05)


WARM = 4  # steps after which most ids are known


def checked(found: list) -> list:
    """The ranks' answers. Raises the first error among them."""
    for answer in found:
        if isinstance(answer, BaseException):
            raise answer
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("model", SMALL)
def test_a_plan_chosen_by_cost_never_sends_more_than_any_alternative(ranks, model, size):
    """Measured, ids and positions included: rows, partial sums, and push and pull over Flight."""
    case = Case(model, SMALL[model], updates=10, sizes=(64,) * size, last=(64,) * size)
    case, sent = replace(case, load=load_of(batches(case)[0][0], size)), {}
    for way in ("auto", "rows", "substitute"):
        found = checked(ranks.together(size, train_together, replace(case, exchange=way)))
        sent[way] = sum(of_step.bytes for answer in found for of_step, _ in answer["counted"][WARM:])
    kinds = ("ids", "rows", "row_gradients", "dense", "dense_gradients")
    found = checked(ranks.together(size, push_and_pull, case))
    sent["push_pull"] = sum(step.get(k, 0) for answer in found for step in answer["carried"][WARM:] for k in kinds)
    assert sent["auto"] <= min(sent.values()), sent


def test_push_and_pull_trains_as_collectives_do(ranks):
    """So that their bytes are of the same training."""
    case = Case("deepfm", SMALL["deepfm"], "rows", updates=6, sizes=(16, 16), last=(16, 16))
    together, pushed = (checked(ranks.together(2, function, case)) for function in (train_together, push_and_pull))
    for one, other in zip(together, pushed, strict=True):
        assert one["rows"].keys() == other["rows"].keys()
        assert all((values == other["rows"][key][0]).all() for key, (values, _) in one["rows"].items())
        np.testing.assert_array_equal(one["dense"], other["dense"])


@pytest.mark.parametrize("exchange", ["rows", "substitute"])
def test_ids_go_in_full_once_in_a_group_and_again_in_the_next(ranks, exchange):
    case = Case("fm", SMALL["fm"], exchange, updates=12, sizes=(64, 64), last=(64, 64))
    runs = [[answer["counted"] for answer in checked(ranks.together(2, train_together, case))] for _ in range(2)]
    assert runs[0] == runs[1], "a new group has a new list"
    for counted in runs[0]:
        ids = [sent.ids["ids"] for sent, _ in counted]
        assert sum(ids[6:]) < 0.5 * 6 * ids[0]
    sent, predicted = (sum(pair[i].ids["ids"] for counted in runs[0] for pair in counted) for i in (0, 1))
    assert sent == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize("capacity", [1, 40])
def test_lists_of_ids_that_overflow_change_nothing_but_bytes(ranks, capacity):
    """Bit by bit: moved rows as by one process; partial sums of single ids as with room for all of them."""
    case = Case("deepfm", SMALL["deepfm"], "rows", updates=8, capacity=capacity)
    same(joined(ranks.together(3, train_together, case)), ranks.alone(train_alone, case))
    summed = Case("deepfm", SMALL["deepfm"], "substitute", updates=8, bags=(), singles=6)
    roomy = joined(ranks.together(2, train_together, summed))
    tight = joined(ranks.together(2, train_together, replace(summed, capacity=capacity)))
    for key, (values, clock) in roomy["rows"].items():
        np.testing.assert_array_equal(tight["rows"][key][0], values)
        np.testing.assert_array_equal(tight["rows"][key][1], clock)
    np.testing.assert_array_equal(tight["dense"], roomy["dense"])
    np.testing.assert_array_equal(tight["losses"][:, 0], roomy["losses"][:, 0])
    np.testing.assert_allclose(tight["losses"][:, 1], roomy["losses"][:, 1], rtol=1e-6)  # a norm's order of summation
    ids = [sum(sent.ids["ids"] for sent, _ in found["counted"]) for found in (tight, roomy)]
    assert ids[0] > ids[1]


def test_a_loss_that_is_not_finite_is_the_same_error_and_stops_everybody(ranks):
    for exchange in ("rows", "substitute"):
        case = Case("deepfm", SMALL["deepfm"], exchange, huge=5)
        found = ranks.together(3, train_together, case)
        assert isinstance(found[1], LossError)
        assert "at gradient 5: day 0" in str(found[1])
        assert all("lost another rank" in str(error) for error in found[::2])


@pytest.mark.parametrize("exchange", ["rows", "substitute"])
def test_a_worker_that_holds_back_trains_as_one_that_pushes(ranks, exchange):
    """One worker and shards on up to 4 ranks: what leaves and what is held back of its dense gradients is the same."""
    case = Case("deepfm", SMALL["deepfm"], exchange, keep=0.1, sizes=(16,), last=(16,))
    alone = ranks.alone(train_alone, case)
    for size in (1, 2, 4):
        roles = Roles(tuple(range(size)), (0,))
        answers = ranks.together(size, train_together, replace(case, roles=roles))
        found = joined(answers)
        if exchange == "rows":
            same(found, alone)
            np.testing.assert_array_equal(answers[0]["held"], alone["held"])
        else:
            close(found, alone, 1e-3)


@pytest.mark.parametrize("exchange", ["rows", "substitute"])
def test_bytes_of_what_leaves_are_counted_and_predicted(ranks, exchange):
    case = Case("deepfm", {"dim": 4, "hidden": [64, 32]}, exchange, keep=0.02, updates=8, last=(16,) * 4)
    plain, thin = (joined(ranks.together(4, train_together, each)) for each in (replace(case, keep=1.0), case))
    whole, sent, predicted = (
        sum(found["values"].get(kind, 0) for kind in KINDS)
        for found, KINDS in (
            (totals(plain, 0), ("dense",)),
            (totals(thin, 0), ("dense", "dense_gradients", "dense_gradients_places")),
            (totals(thin, 1), ("dense", "dense_gradients", "dense_gradients_places")),
        )
    )
    assert sent < 0.65 * whole, "parameters come whole, gradients leave thin"
    assert sent == pytest.approx(predicted, rel=0.05)
    values = totals(thin, 0)["values"]
    assert 0 < values["dense_gradients_places"] <= values["dense_gradients"]


def totals(found: dict, which: int) -> dict:
    """Bytes of all ranks and steps, measured (0) or predicted (1), by kind."""
    values: dict[str, float] = {}
    for counted in found["counted"]:
        for kind, size in counted[which].values.items():
            values[kind] = values.get(kind, 0) + size
    return {"values": values}


def test_a_rank_that_dies_is_an_error_for_all_others_and_a_new_group_goes_on(ranks):
    """The last test here: one process of the four is gone. The others meet in a group of their own."""
    case = Case("fm", SMALL["fm"], "substitute")
    found = ranks.together(4, train_together, case, (3, 5))
    assert found[3] is None
    assert all(isinstance(error, TrainingError) and "lost another rank" in str(error) for error in found[:3])
    close(joined(ranks.together(3, train_together, case)), ranks.alone(train_alone, case))
