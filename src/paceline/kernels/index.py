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
from paceline.kernels.pointers import AHEAD, address_of, ints, ints_at, prefetch

U = np.uint64
_AT_ONCE = 32  # ids whose memory is asked for together
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
def _guess(places, start, blocks, size, keys, begin, stop, rows):
    """rows[begin:stop] = the row of the first place with the key's mark, or -1. All that is looked at here, and the ids
    of those rows, which are looked at next, is asked for before."""
    last = places.shape[0] - 1
    for i in range(begin, stop):
        prefetch(start + 8 * place_of(keys[i], last + 1))
    for i in range(begin, stop):
        at, mark, row = place_of(keys[i], last + 1), _mark(keys[i]), np.int64(-1)
        while True:
            entry = places[at]
            if entry == 0:
                break
            if entry & ~_ROW == mark:
                row = (entry & _ROW) - 1
                if row < size:
                    prefetch(address_of(blocks, row, 8))
                break
            at = (at + 1) & last
        rows[i] = row


@kernel
def find(entries, old, ids_at, size, ids, rows):
    """rows[i] = row of ids[i], or -1. ids_at: addresses of the ids that rows have, `size` of them; `old` has zero
    length unless the index is growing. Returns how many there are not."""
    n, growing, unknown = ids.shape[0], old.shape[0] > 0, 0
    # Views without an owner: to hand one on counts no references.
    start = entries.ctypes.data
    places, blocks = ints(start, entries.shape[0]), ints(ids_at.ctypes.data, ids_at.shape[0])
    before, keys = ints(old.ctypes.data, old.shape[0]), ints(ids.ctypes.data, n)
    found = ints(rows.ctypes.data, n)
    for begin in range(0, n, _AT_ONCE):
        stop = min(begin + _AT_ONCE, n)
        _guess(places, start, blocks, size, keys, begin, stop, found)
        for i in range(begin, stop):
            row = found[i]
            if row >= 0 and ints_at(blocks, row, 1)[0] != keys[i]:
                row = _find(places, blocks, size, keys[i])
            if row < 0 and growing:
                row = _find(before, blocks, size, keys[i])
            found[i] = row
            unknown += row < 0
    return unknown


@kernel
def find_or_insert(entries, old, ids_at, size, ids, rows):
    """As `find` of distinct ids, and unknown ones get the rows size, size + 1, ... Returns how many were new.

    `entries` must have room for all of them.
    """
    n, growing, next_row = ids.shape[0], old.shape[0] > 0, size
    start = entries.ctypes.data
    places, blocks = ints(start, entries.shape[0]), ints(ids_at.ctypes.data, ids_at.shape[0])
    before, keys = ints(old.ctypes.data, old.shape[0]), ints(ids.ctypes.data, n)
    found = ints(rows.ctypes.data, n)
    for begin in range(0, n, _AT_ONCE):
        stop = min(begin + _AT_ONCE, n)
        _guess(places, start, blocks, size, keys, begin, stop, found)
        for i in range(begin, stop):
            row = found[i]
            if row >= size or (row >= 0 and ints_at(blocks, row, 1)[0] != keys[i]):
                row = _find(places, blocks, size, keys[i])
            if row < 0 and growing:
                row = _find(before, blocks, size, keys[i])
            if row < 0:
                row = next_row
                _insert(places, keys[i], row)
                next_row += 1
            found[i] = row
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
