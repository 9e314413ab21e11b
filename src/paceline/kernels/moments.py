"""Running moments and standardised inputs, a batch at a time. The sums over rows are numpy's own (their order of
addition is what runs are compared by); everything around them is here, because a small batch consists of calls."""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel


@kernel
def present(numbers, count, filled):
    """count float64 [features] = how many of numbers float64 [n, features] are there (not NaN); filled = the numbers
    with 0 where they are not."""
    for j in range(numbers.shape[1]):
        count[j] = 0.0
    for i in range(numbers.shape[0]):
        for j in range(numbers.shape[1]):
            if np.isnan(numbers[i, j]):
                filled[i, j] = 0.0
            else:
                filled[i, j] = numbers[i, j]
                count[j] += 1.0


@kernel
def squares(numbers, count, sums, means, squared):
    """means float64 [features] = sums / count (0 of nothing); squared = (numbers - means)^2, 0 where there is none."""
    for j in range(numbers.shape[1]):
        means[j] = sums[j] / max(count[j], 1.0)
    for i in range(numbers.shape[0]):
        for j in range(numbers.shape[1]):
            if np.isnan(numbers[i, j]):
                squared[i, j] = 0.0
            else:
                apart = numbers[i, j] - means[j]
                squared[i, j] = apart * apart


@kernel
def merge(moments, count, means, square, out):
    """out float64 [3, features] = moments (count, mean, sum of squared differences) and those of a batch, together."""
    for j in range(count.shape[0]):
        total = moments[0, j] + count[j]
        delta = means[j] - moments[1, j] if count[j] > 0.0 else 0.0
        safe = max(total, 1.0)
        out[0, j] = total
        out[1, j] = moments[1, j] + delta * count[j] / safe
        out[2, j] = moments[2, j] + square[j] + delta * delta * moments[0, j] * count[j] / safe


@kernel
def dense_input(numbers, at, standardise, moments, clip, out):
    """out[:, 2 * at] float32 = column `at` of numbers float64 [n, features] (0 if missing; standardised within +-clip
    if asked for); out[:, 2 * at + 1] = whether it is missing."""
    mean, deviation = moments[1, at], np.sqrt(moments[2, at] / max(moments[0, at], 1.0))
    if deviation == 0.0:
        deviation = 1.0
    for i in range(numbers.shape[0]):
        value = numbers[i, at]
        if np.isnan(value):
            out[i, 2 * at] = np.float32(0.0)
            out[i, 2 * at + 1] = np.float32(1.0)
            continue
        if standardise:
            value = (value - mean) / deviation
            if value < -clip:
                value = -clip
            elif value > clip:
                value = clip
        out[i, 2 * at] = np.float32(value)
        out[i, 2 * at + 1] = np.float32(0.0)
