"""Running mean and variance of the numbers that are standardised, as the log is read: no pass ahead of training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.batch import Floats
from paceline.schema import Schema

Moments = npt.NDArray[np.float64]
_CLIP = 10.0


def no_moments(features: int) -> Moments:
    """float64 [3, features]: count, mean, sum of squared differences of nothing."""
    return np.zeros((3, features), np.float64)


def add(moments: Moments, numbers: npt.NDArray[np.float64]) -> Moments:
    """The moments with `numbers` [n, features] (NaN = missing) added (Chan, Golub, LeVeque, 1979)."""
    if not numbers.size:
        return moments
    present = ~np.isnan(numbers)
    count = present.sum(axis=0).astype(np.float64)
    filled = np.where(present, numbers, 0.0)
    mean = filled.sum(axis=0) / np.maximum(count, 1.0)
    square = (np.where(present, numbers - mean, 0.0) ** 2).sum(axis=0)
    total = moments[0] + count
    delta = np.where(count > 0, mean - moments[1], 0.0)
    safe = np.maximum(total, 1.0)
    return np.stack(
        [total, moments[1] + delta * count / safe, moments[2] + square + delta**2 * moments[0] * count / safe]
    )


def dense_inputs(schema: Schema, numbers: npt.NDArray[np.float64], moments: Moments) -> Floats:
    """float32 [n, 2 * features]: each feature's value (0 if missing; standardised within +-10) and missing flag."""
    out = np.zeros((numbers.shape[0], schema.dense_width), np.float32)
    for at, numeric in enumerate(schema.dense):
        values, missing = numbers[:, at], np.isnan(numbers[:, at])
        if numeric.transform == "standardise":
            deviation = np.sqrt(moments[2, at] / max(moments[0, at], 1.0)) or 1.0
            values = np.clip((values - moments[1, at]) / deviation, -_CLIP, _CLIP)
        out[:, 2 * at] = np.where(missing, 0.0, values)
        out[:, 2 * at + 1] = missing
    return out
