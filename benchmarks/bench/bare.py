"""Loops that move the bytes a kernel has to move and do nothing else: the kernels' limit on this machine. They ask for
memory ahead of time as the kernels do; a plain loop is slower than the kernels and no limit."""

from __future__ import annotations

import numba
import numpy as np

from paceline.kernels.pointers import AHEAD, floats, prefetch, prefetch_bytes

bare = numba.njit(nogil=True)


@bare
def probe(entries, places, out):
    """Read a 16-byte entry at each place of an index: entries int64 [capacity, 2], places and out int64 [m]."""
    for i in range(places.shape[0]):
        if i + AHEAD < places.shape[0]:
            prefetch(entries.ctypes.data + places[i + AHEAD] * 16)
        out[i] = entries[places[i], 0] + entries[places[i], 1]


@bare
def gather(table, rows, out):
    """Copy rows out: table float32 [R, >= w], rows int64 [m], out float32 [m, w]."""
    width, step = out.shape[1], table.shape[1] * 4
    for i in range(rows.shape[0]):
        if i + AHEAD < rows.shape[0]:
            prefetch_bytes(table.ctypes.data + rows[i + AHEAD] * step, width * 4)
        row, into = floats(table.ctypes.data + rows[i] * step, width), floats(out.ctypes.data + i * width * 4, width)
        for j in range(width):
            into[j] = row[j]


@bare
def change(table, rows, add):
    """Read and write whole rows: table float32 [R, 2 w], rows int64 [m], add float32 [m, w]."""
    width, step = add.shape[1], table.shape[1] * 4
    for i in range(rows.shape[0]):
        if i + AHEAD < rows.shape[0]:
            prefetch_bytes(table.ctypes.data + rows[i + AHEAD] * step, step)
        at = table.ctypes.data + rows[i] * step
        first, second = floats(at, width), floats(at + width * 4, width)
        more = floats(add.ctypes.data + i * width * 4, width)
        for j in range(width):
            first[j] += more[j]
            second[j] += more[j]


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Read one array, write another."""
    np.copyto(target, source)
