"""Which row an id has: open addressing with linear probing over int64 places, each (mark, row + 1) or 0 for empty.

A place takes 8 bytes: the mark is the upper 24 bits of the id's hash, and where it fits, the id that the row itself has
is looked at. So every 64-bit id may be a key, and a fresh array of zeros is an empty index. One shard has room for 2^40
rows.

While an index grows there are two, and `moved` places of the old one, from `origin` on and around its end, have been
moved: a key whose place there was moved is in the new one, any other in the old one. What is moved begins and ends with
an empty place, so no chain of probes crosses from one part into the other.
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
def _stays(key, old, origin, moved):
    """Whether a key is in the old index."""
    count = old.shape[0]
    return ((place_of(key, count) - origin) & (count - 1)) >= moved


@kernel
def _guess(entries, start, blocks, size, keys, begin, stop, rows):
    """rows[begin:stop] = the row of the first place with the key's mark, or -1. All that is looked at here, and the ids
    of those rows, which are looked at next, is asked for before. start: where the entries lie."""
    last = entries.shape[0] - 1
    for i in range(begin, stop):
        prefetch(start + 8 * place_of(keys[i], last + 1))
    for i in range(begin, stop):
        at, mark, row = place_of(keys[i], last + 1), _mark(keys[i]), np.int64(-1)
        while True:
            entry = entries[at]
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
def _guess_growing(both, starts, state, blocks, size, keys, begin, stop, rows):
    """The same of keys that are in the one index or the other. both: (entries, old), at addresses `starts`; state:
    (origin, moved)."""
    entries, old = both
    for i in range(begin, stop):
        if _stays(keys[i], old, *state):
            prefetch(starts[1] + 8 * place_of(keys[i], old.shape[0]))
        else:
            prefetch(starts[0] + 8 * place_of(keys[i], entries.shape[0]))
    for i in range(begin, stop):
        if _stays(keys[i], old, *state):
            _guess(old, starts[1], blocks, size, keys, i, i + 1, rows)
        else:
            _guess(entries, starts[0], blocks, size, keys, i, i + 1, rows)


@kernel
def _search(both, state, blocks, size, key):
    """Row of `key` or -1, by all places that it may have."""
    entries, old = both
    if old.shape[0] > 0 and _stays(key, old, *state):
        return _find(old, blocks, size, key)
    return _find(entries, blocks, size, key)


@kernel
def _views(entries, old, ids_at, ids, rows):
    """Views without an owner, since to hand one on counts no references: ((entries, old), their addresses, ids_at, ids,
    rows)."""
    starts = (entries.ctypes.data, old.ctypes.data)
    both = (ints(starts[0], entries.shape[0]), ints(starts[1], old.shape[0]))
    blocks = ints(ids_at.ctypes.data, ids_at.shape[0])
    return both, starts, blocks, ints(ids.ctypes.data, ids.shape[0]), ints(rows.ctypes.data, ids.shape[0])


@kernel
def find(entries, old, origin, moved, ids_at, size, ids, rows):
    """rows[i] = row of ids[i], or -1. ids_at: addresses of the ids that rows have, `size` of them; `old` has zero
    length unless the index is growing. Returns how many there are not."""
    n, unknown, state, growing = ids.shape[0], 0, (origin, moved), old.shape[0] > 0
    both, starts, blocks, keys, found = _views(entries, old, ids_at, ids, rows)
    for begin in range(0, n, _AT_ONCE):
        stop = min(begin + _AT_ONCE, n)
        if growing:
            _guess_growing(both, starts, state, blocks, size, keys, begin, stop, found)
        else:
            _guess(both[0], starts[0], blocks, size, keys, begin, stop, found)
        for i in range(begin, stop):
            row = found[i]
            if row >= 0 and ints_at(blocks, row, 1)[0] != keys[i]:
                row = _search(both, state, blocks, size, keys[i])
            found[i] = row
            unknown += row < 0
    return unknown


@kernel
def find_or_insert(entries, old, origin, moved, ids_at, size, ids, rows):
    """As `find` of distinct ids, and unknown ones get the rows size, size + 1, ... Returns how many were new.

    Both must have room for all of them.
    """
    n, next_row, state, growing = ids.shape[0], size, (origin, moved), old.shape[0] > 0
    both, starts, blocks, keys, found = _views(entries, old, ids_at, ids, rows)
    for begin in range(0, n, _AT_ONCE):
        stop = min(begin + _AT_ONCE, n)
        if growing:
            _guess_growing(both, starts, state, blocks, size, keys, begin, stop, found)
        else:
            _guess(both[0], starts[0], blocks, size, keys, begin, stop, found)
        for i in range(begin, stop):
            row = found[i]
            if row >= size or (row >= 0 and ints_at(blocks, row, 1)[0] != keys[i]):
                row = _search(both, state, blocks, size, keys[i])
            if row < 0:
                row = next_row
                if growing and _stays(keys[i], both[1], origin, moved):
                    _insert(both[1], keys[i], row)
                else:
                    _insert(both[0], keys[i], row)
                next_row += 1
            found[i] = row
    return next_row - size


@kernel
def first_empty(entries):
    """The first empty place."""
    i = 0
    while entries[i] != 0:
        i += 1
    return i


@kernel
def _take(entries, old, at, ids_at):
    """A place's entry to the new index."""
    row = (old[at] & _ROW) - 1
    _insert(entries, ints_at(ids_at, row, 1)[0], row)
    old[at] = 0


@kernel
def move(entries, old, origin, moved, places, ids_at):
    """Move `places` more places or a few more, to behind an empty one. Returns how many are moved now. All rows in
    there have ids."""
    count = old.shape[0]
    last, stop = count - 1, min(moved + places, count)
    while moved < count:
        ahead = old[(origin + moved + AHEAD) & last]
        if ahead != 0:
            prefetch(address_of(ids_at, (ahead & _ROW) - 1, 8))
        at = (origin + moved) & last
        moved += 1
        if old[at] != 0:
            _take(entries, old, at, ids_at)
        elif moved >= stop:
            break
    if moved == count:  # a chain at the end may have grown into what was moved first
        at = origin
        while old[at] != 0:
            _take(entries, old, at, ids_at)
            at = (at + 1) & last
    return moved


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
