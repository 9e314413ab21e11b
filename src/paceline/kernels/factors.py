"""The second-order term of a factorisation machine, and its gradient, each in one pass over the rows."""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel
from paceline.kernels.pointers import floats


@kernel
def factor(rows, sums, squares, out):
    """rows float32 [B, F, dim], contiguous; sums float32 [B, dim] = sum over fields; out float32 [B] =
    1/2 sum_j (sums_j^2 - sum_f rows_fj^2), subtracted within each dimension, where fewer digits cancel. squares float32
    [dim] is room to work in: the caller's, for an array made here would be freed while a view still looks at it."""
    fields, dim = rows.shape[1], rows.shape[2]
    square = floats(squares.ctypes.data, dim)
    for b in range(rows.shape[0]):
        total = floats(sums.ctypes.data + b * dim * 4, dim)
        for j in range(dim):
            total[j] = np.float32(0.0)
            square[j] = np.float32(0.0)
        for f in range(fields):
            row = floats(rows.ctypes.data + (b * fields + f) * dim * 4, dim)
            for j in range(dim):
                total[j] += row[j]
                square[j] += row[j] * row[j]
        whole = np.float32(0.0)
        for j in range(dim):
            whole += total[j] * total[j] - square[j]
        out[b] = np.float32(0.5) * whole


@kernel
def factor_back(gradient, rows, sums, out):
    """out float32 [B, F, dim] = gradient_b (sums_bj - rows_bfj), the way back of `factor`."""
    fields, dim = rows.shape[1], rows.shape[2]
    for b in range(rows.shape[0]):
        scale = gradient[b]
        total = floats(sums.ctypes.data + b * dim * 4, dim)
        for f in range(fields):
            place = (b * fields + f) * dim * 4
            row, into = floats(rows.ctypes.data + place, dim), floats(out.ctypes.data + place, dim)
            for j in range(dim):
                into[j] = scale * (total[j] - row[j])
