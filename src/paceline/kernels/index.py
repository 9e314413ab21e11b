"""Which row an id has: open addressing with linear probing over int64 [capacity, 2] entries (id, row + 1).

0 in the second column is an empty place, so a fresh array of zeros is an empty index and every 64-bit id may be a key.
While an index grows there are two: finds look into the new one and then the old one, inserts go into the new one, and
each call moves a stretch of the old one over, so no step pays for the whole move.
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.hashing import GOLDEN
from paceline.kernels.jit import kernel
from paceline.kernels.pointers import AHEAD, prefetch

U = np.uint64


@kernel
def place_of(key, capacity):
    """Where to look for a key first."""
    h = U(key) * GOLDEN
    return np.int64((h ^ (h >> U(32))) & U(capacity - 1))


@kernel
def _find(entries, key):
    """Row of `key` or -1."""
    capacity = entries.shape[0]
    i = place_of(key, capacity)
    while True:
        row = entries[i, 1]
        if row == 0:
            return np.int64(-1)
        if entries[i, 0] == key:
            return row - 1
        i = (i + 1) & (capacity - 1)


@kernel
def _insert(entries, key, row):
    capacity = entries.shape[0]
    i = place_of(key, capacity)
    while entries[i, 1] != 0:
        i = (i + 1) & (capacity - 1)
    entries[i, 0] = key
    entries[i, 1] = row + 1


@kernel
def find(entries, old, ids, rows):
    """rows[i] = row of ids[i], or -1. `old` has zero length unless the index is growing. Returns how many there are
    not."""
    growing, unknown = old.shape[0] > 0, 0
    for i in range(ids.shape[0]):
        if i + AHEAD < ids.shape[0]:
            prefetch(entries.ctypes.data + 16 * place_of(ids[i + AHEAD], entries.shape[0]))
        row = _find(entries, ids[i])
        if row < 0 and growing:
            row = _find(old, ids[i])
        rows[i] = row
        unknown += row < 0
    return unknown


@kernel
def find_or_insert(entries, old, ids, rows, next_row):
    """As `find`, and unknown ids get the rows next_row, next_row + 1, ... Returns how many were new.

    `entries` must have room for all of them.
    """
    growing = old.shape[0] > 0
    first = next_row
    for i in range(ids.shape[0]):
        if i + AHEAD < ids.shape[0]:
            prefetch(entries.ctypes.data + 16 * place_of(ids[i + AHEAD], entries.shape[0]))
        key = ids[i]
        row = _find(entries, key)
        if row < 0 and growing:
            row = _find(old, key)
        if row < 0:
            row = next_row
            _insert(entries, key, row)
            next_row += 1
        rows[i] = row
    return next_row - first


@kernel
def move(entries, old, start, stop):
    """Insert the places [start, stop) of `old` into `entries`, as far as they are used."""
    for i in range(start, stop):
        if old[i, 1] != 0:
            _insert(entries, old[i, 0], old[i, 1] - 1)


@kernel
def unique(ids, uniques, inverse, scratch):
    """Number the distinct ids in order of first appearance: ids[i] == uniques[inverse[i]]. Returns how many.

    uniques int64 [n], inverse int32 [n]; scratch int32, zeros, a power of two >= 2 n long.
    """
    capacity = scratch.shape[0]
    count = 0
    for i in range(ids.shape[0]):
        if i + AHEAD < ids.shape[0]:
            prefetch(scratch.ctypes.data + 4 * place_of(ids[i + AHEAD], capacity))
        key = ids[i]
        place = place_of(key, capacity)
        while True:
            at = scratch[place]
            if at == 0:
                uniques[count] = key
                count += 1
                scratch[place] = count
                inverse[i] = count - 1
                break
            if uniques[at - 1] == key:
                inverse[i] = at - 1
                break
            place = (place + 1) & (capacity - 1)
    return count
