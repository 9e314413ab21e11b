"""Interactions as lists of items for each (type, user), and what is drawn beside them: orders, negatives, candidates.

Every draw is a function of (seed, epoch, place) alone, by SplitMix64 (`paceline.kernels.hashing`), so whoever draws
again draws the same. Lists: row = type * users + user has the items found[starts[row]:starts[row + 1]], ascending and
each once; starts int64 [types * users + 1], found int32.
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.hashing import GOLDEN, U, mix64
from paceline.kernels.jit import kernel

_UNIT = 2.0**-53


@kernel
def _stream(seed, a, b):
    """The start of the draws of (seed, a, b)."""
    return mix64(mix64(mix64(U(seed) + GOLDEN) ^ U(a)) + GOLDEN) ^ mix64(U(b) + GOLDEN)


@kernel
def order_keys(seed, epoch, out):
    """out uint64 [n]: sorting by it shuffles n things anew in each epoch."""
    for i in range(out.shape[0]):
        out[i] = mix64(_stream(seed, epoch, i))


@kernel
def fill_lists(starts, rows, items, found):
    """Items int32 [n] of rows int64 [n], which are sorted by (row, item): each pair once. starts: zeros before.
    Returns the length of `found` that is used."""
    used = 0
    for i in range(rows.shape[0]):
        if i == 0 or rows[i] != rows[i - 1] or items[i] != items[i - 1]:
            found[used] = items[i]
            used += 1
            starts[rows[i] + 1] += 1
    for row in range(starts.shape[0] - 1):
        starts[row + 1] += starts[row]
    return used


@kernel
def holds(starts, found, row, item):
    """Whether the row's list has the item."""
    low, high = starts[row], starts[row + 1]
    while low < high:
        middle = (low + high) // 2
        if found[middle] < item:
            low = middle + 1
        else:
            high = middle
    return low < starts[row + 1] and found[low] == item


@kernel
def _absent(starts, found, row, rank):
    """The item of that rank (from 0) among those that are not in the row's list."""
    first = starts[row]
    low, high = np.int64(0), starts[row + 1] - first
    while low < high:  # the first place whose item has more than `rank` absent ones below it
        middle = (low + high) // 2
        if found[first + middle] - middle > rank:
            high = middle
        else:
            low = middle + 1
    return rank + low


@kernel
def draw_negatives(seed, epoch, places, rows, starts, found, easy, weak_starts, weak, harder, items, out):
    """out int64 [B, K]: for the interaction at places[b] of the epoch, whose list is rows[b], K of the `items` items
    that are not in it, uniformly, with repeats; where the row of (weak_starts, weak) is not empty, a share `harder` of
    them out of that instead. easy: whether there is no such list at all."""
    for b in range(rows.shape[0]):
        row = rows[b]
        free = U(items - (starts[row + 1] - starts[row]))
        state = _stream(seed, epoch, places[b])
        for k in range(out.shape[1]):
            state += GOLDEN
            drawn = mix64(state)
            if not easy:
                count = U(weak_starts[row + 1] - weak_starts[row])
                state += GOLDEN
                if count > U(0) and np.float64(mix64(state) >> U(11)) * _UNIT < harder:
                    out[b, k] = weak[weak_starts[row] + np.int64(drawn % count)]
                    continue
            out[b, k] = _absent(starts, found, row, np.int64(drawn % free))


@kernel
def draw_candidates(seed, rows, positives, starts, found, items, out):
    """out int64 [n, C]: for test row t, C distinct items that are neither in the list rows[t] nor positives[t]. Returns
    the first t that has too few of them, or -1."""
    for t in range(rows.shape[0]):
        row = rows[t]
        free = items - (starts[row + 1] - starts[row])
        if free - (not holds(starts, found, row, positives[t])) < out.shape[1]:
            return t
        state = _stream(seed, -1, t)
        for k in range(out.shape[1]):
            fresh = False
            while not fresh:
                state += GOLDEN
                item = _absent(starts, found, row, np.int64(mix64(state) % U(free)))
                fresh = item != positives[t]
                for j in range(k):
                    fresh = fresh and out[t, j] != item
            out[t, k] = item
    return -1


@kernel
def pair_keys(seed, kind, users, items, out):
    """out uint64 [n]: a number for each pair of ids (int64 [n]) and the type `kind`, wherever the pair stands."""
    for i in range(out.shape[0]):
        out[i] = mix64(_stream(seed, U(users[i]) + U(kind), items[i]))
