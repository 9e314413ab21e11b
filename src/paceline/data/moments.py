"""Running mean and variance of the numbers that are standardised, as the log is read: no pass ahead of training."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.batch import Floats
from paceline.kernels import moments as kernels
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
    count, means = np.empty(numbers.shape[1]), np.empty(numbers.shape[1])
    kernels.present(numbers, count, values := np.empty_like(numbers))
    kernels.squares(numbers, count, np.add.reduce(values, axis=0), means, values)
    out = np.empty_like(moments)
    kernels.merge(moments, count, means, np.add.reduce(values, axis=0), out)
    return out


def dense_inputs(schema: Schema, numbers: npt.NDArray[np.float64], moments: Moments) -> Floats:
    """float32 [n, 2 * features]: each feature's value (0 if missing; standardised within +-10) and missing flag."""
    dense = schema.dense
    out = np.empty((numbers.shape[0], 2 * len(dense)), np.float32)
    for at, numeric in enumerate(dense):
        kernels.dense_input(numbers, at, numeric.transform == "standardise", moments, _CLIP, out)
    return out
