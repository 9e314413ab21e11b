"""Which row an id has: open addressing with linear probing over int64 places, each (mark, row + 1) or 0 for empty.

A place takes 8 bytes: the mark is the upper 24 bits of the id's hash, and where it fits, the id that the row itself has
is looked at. So every 64-bit id may be a key, and a fresh array of zeros is an empty index. One shard has room for 2^40
rows. While an index grows there are two: finds look into the new one and then the old one, inserts go into the new one,
and each call moves a stretch of the old one over, so no step pays for the whole move.
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.hashing import GOLDEN
from paceline.kernels.jit import kernel
from paceline.kernels.pointers import AHEAD, address_of, ints_at, prefetch

U = np.uint64
_ROW_BITS = U(40)
_ROW = np.int64((1 << 40) - 1)


@kernel
def _hash(key):
    h = U(key) * GOLDEN
    return h ^ (h >> U(32))


@kernel
def place_of(key, capacity):
    """Where to look for a key first."""
    return np.int64(_hash(key) & U(capacity - 1))


@kernel
def _mark(key):
    """The upper bits of a key's place, the lower ones 0."""
    return np.int64((_hash(key) >> _ROW_BITS) << _ROW_BITS)


@kernel
def _find(entries, ids_at, size, key):
    """Row of `key` or -1. size: rows below it have their ids; what is newer is another key's."""
    last = entries.shape[0] - 1
    i, mark = place_of(key, entries.shape[0]), _mark(key)
    while True:
        entry = entries[i]
        if entry == 0:
            return np.int64(-1)
        if entry & ~_ROW == mark:
            row = (entry & _ROW) - 1
            if row < size and ints_at(ids_at, row, 1)[0] == key:
                return row
        i = (i + 1) & last


@kernel
def _insert(entries, key, row):
    last = entries.shape[0] - 1
    i = place_of(key, entries.shape[0])
    while entries[i] != 0:
        i = (i + 1) & last
    entries[i] = _mark(key) | (row + 1)


@kernel
def _ask(entries, ids_at, size, ids, i):
    """Ask for the memory that looking up ids[i + AHEAD] needs: its place first, and later the id of the row there."""
    if i + 2 * AHEAD < ids.shape[0]:
        prefetch(entries.ctypes.data + 8 * place_of(ids[i + 2 * AHEAD], entries.shape[0]))
    if i + AHEAD < ids.shape[0]:
        key = ids[i + AHEAD]
        entry = entries[place_of(key, entries.shape[0])]
        if entry != 0 and entry & ~_ROW == _mark(key) and entry & _ROW <= size:
            prefetch(address_of(ids_at, (entry & _ROW) - 1, 8))


@kernel
def find(entries, old, ids_at, size, ids, rows):
    """rows[i] = row of ids[i], or -1. ids_at: addresses of the ids that rows have, `size` of them; `old` has zero
    length unless the index is growing. Returns how many there are not."""
    growing, unknown = old.shape[0] > 0, 0
    for i in range(ids.shape[0]):
        _ask(entries, ids_at, size, ids, i)
        row = _find(entries, ids_at, size, ids[i])
        if row < 0 and growing:
            row = _find(old, ids_at, size, ids[i])
        rows[i] = row
        unknown += row < 0
    return unknown


@kernel
def find_or_insert(entries, old, ids_at, size, ids, rows):
    """As `find` of distinct ids, and unknown ones get the rows size, size + 1, ... Returns how many were new.

    `entries` must have room for all of them.
    """
    growing, next_row = old.shape[0] > 0, size
    for i in range(ids.shape[0]):
        _ask(entries, ids_at, size, ids, i)
        key = ids[i]
        row = _find(entries, ids_at, size, key)
        if row < 0 and growing:
            row = _find(old, ids_at, size, key)
        if row < 0:
            row = next_row
            _insert(entries, key, row)
            next_row += 1
        rows[i] = row
    return next_row - size


@kernel
def move(entries, old, ids_at, start, stop):
    """Insert the places [start, stop) of `old` into `entries`, as far as they are used. The rows there have ids."""
    for i in range(start, stop):
        if i + AHEAD < stop and old[i + AHEAD] != 0:
            prefetch(address_of(ids_at, (old[i + AHEAD] & _ROW) - 1, 8))
        if old[i] != 0:
            row = (old[i] & _ROW) - 1
            _insert(entries, ints_at(ids_at, row, 1)[0], row)


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
