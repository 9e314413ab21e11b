"""Loops that move the bytes a kernel has to move and do nothing else: the kernels' limit on this machine."""

from __future__ import annotations

import numba
import numpy as np

bare = numba.njit(nogil=True)


@bare
def probe(entries, places, out):
    """Read a 16-byte entry at each place of an index: entries int64 [capacity, 2], places and out int64 [m]."""
    for i in range(places.shape[0]):
        out[i] = entries[places[i], 0] + entries[places[i], 1]


@bare
def gather(table, rows, out):
    """Copy rows out: table float32 [R, >= w], rows int64 [m], out float32 [m, w]."""
    for i in range(rows.shape[0]):
        for j in range(out.shape[1]):
            out[i, j] = table[rows[i], j]


@bare
def change(table, rows, add):
    """Read and write whole rows: table float32 [R, 2 w], rows int64 [m], add float32 [m, w]."""
    width = add.shape[1]
    for i in range(rows.shape[0]):
        for j in range(width):
            table[rows[i], j] += add[i, j]
            table[rows[i], width + j] += add[i, j]


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Read one array, write another."""
    np.copyto(target, source)
