"""Numbers for all pairs of V vectors, in and out of V x V matrices: pair (i, j) with i < j, row by row."""

from __future__ import annotations

from paceline.kernels.jit import kernel
from paceline.kernels.pointers import floats


@kernel
def above(square, out):
    """out float32 [B, V (V - 1) / 2] = what stands above the diagonals of square float32 [B, V, V]; contiguous."""
    vectors, pairs = square.shape[1], out.shape[1]
    for b in range(square.shape[0]):
        at = out.ctypes.data + b * pairs * 4
        for i in range(vectors - 1):
            count = vectors - 1 - i
            row = floats(square.ctypes.data + ((b * vectors + i) * vectors + i + 1) * 4, count)
            into = floats(at, count)
            for j in range(count):
                into[j] = row[j]
            at += count * 4


@kernel
def mirrored(pairs, out):
    """The way back, to both sides of the diagonal: out float32 [B, V, V] symmetric, with zeros on the diagonal, of
    pairs float32 [B, V (V - 1) / 2]; contiguous."""
    vectors, number = out.shape[1], pairs.shape[1]
    for b in range(out.shape[0]):
        at = pairs.ctypes.data + b * number * 4
        corner = out.ctypes.data + b * vectors * vectors * 4
        square = floats(corner, vectors * vectors)
        for i in range(vectors):
            count = vectors - 1 - i
            given, into = floats(at, count), floats(corner + (i * vectors + i + 1) * 4, count)
            square[i * vectors + i] = 0.0
            for j in range(count):
                into[j] = given[j]
            for j in range(count):
                square[(i + 1 + j) * vectors + i] = given[j]
            at += count * 4
