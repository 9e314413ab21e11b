"""Running moments and standardised inputs against the same thing in plain numpy, bit for bit."""

import numpy as np
import pytest

from paceline.data.moments import add, dense_inputs, no_moments
from paceline.schema import Label, Numeric, Schema


def plain_add(moments, numbers):
    present = ~np.isnan(numbers)
    count = present.sum(axis=0).astype(np.float64)
    mean = np.where(present, numbers, 0.0).sum(axis=0) / np.maximum(count, 1.0)
    square = (np.where(present, numbers - mean, 0.0) ** 2).sum(axis=0)
    total, safe = moments[0] + count, np.maximum(moments[0] + count, 1.0)
    delta = np.where(count > 0, mean - moments[1], 0.0)
    return np.stack(
        [total, moments[1] + delta * count / safe, moments[2] + square + delta**2 * moments[0] * count / safe]
    )


def plain_inputs(schema, numbers, moments):
    out = np.zeros((numbers.shape[0], schema.dense_width), np.float32)
    for at, numeric in enumerate(schema.dense):
        values, missing = numbers[:, at], np.isnan(numbers[:, at])
        if numeric.transform == "standardise":
            deviation = np.sqrt(moments[2, at] / max(moments[0, at], 1.0)) or 1.0
            values = np.clip((values - moments[1, at]) / deviation, -10.0, 10.0)
        out[:, 2 * at] = np.where(missing, 0.0, values)
        out[:, 2 * at + 1] = missing
    return out


@pytest.mark.parametrize("features", [1, 2, 13])
@pytest.mark.parametrize("missing", [0.0, 0.3, 1.0])
def test_a_log_of_batches_adds_up_as_in_numpy(features, missing):
    random = np.random.default_rng(features)
    transforms = ["standardise" if at % 3 != 1 else "identity" for at in range(features)]
    numeric = tuple(Numeric(f"n{at}", transform) for at, transform in enumerate(transforms))
    schema = Schema(Label("click"), numeric, (), ())
    moments = plain = no_moments(features)
    for rows in (1, 2, 128, 129, 0, 1000):
        numbers = random.standard_normal((rows, features)) * 10.0 ** random.uniform(-3, 6, features)
        numbers[random.random((rows, features)) < missing] = np.nan
        moments, plain = add(moments, numbers), plain_add(plain, numbers)
        assert moments.tobytes() == plain.tobytes()
        assert dense_inputs(schema, numbers, moments).tobytes() == plain_inputs(schema, numbers, plain).tobytes()


def test_what_never_varies_is_not_divided_by_zero():
    schema = Schema(Label("click"), (Numeric("n", "standardise"),), (), ())
    numbers = np.full((4, 1), 3.0)
    assert dense_inputs(schema, numbers, add(no_moments(1), numbers)).tolist() == [[0.0, 0.0]] * 4
