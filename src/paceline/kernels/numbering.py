"""Ids by the order in which they came: a list of them, and where an id stands in it.

listed int64 [room], of which the first `size` are used; slots int32 [a power of two > size]: open addressing, linear
probing, place in the list + 1, 0 where nothing is. Keys stay in the list alone, so an id costs 8 bytes and its slots.
"""

from __future__ import annotations

from paceline.kernels.index import place_of
from paceline.kernels.jit import kernel


@kernel
def find(ids, listed, slots, numbers):
    """numbers int32 [n] = where ids[i] stands in the list, or -1. Returns how many do not."""
    capacity, unknown = slots.shape[0], 0
    for i in range(ids.shape[0]):
        at = place_of(ids[i], capacity)
        while slots[at] != 0 and listed[slots[at] - 1] != ids[i]:
            at = (at + 1) & (capacity - 1)
        numbers[i] = slots[at] - 1
        unknown += slots[at] == 0
    return unknown


@kernel
def enter(listed, slots, start, stop):
    """Make the ids listed[start:stop], which are not there yet, known to `slots`."""
    capacity = slots.shape[0]
    for number in range(start, stop):
        at = place_of(listed[number], capacity)
        while slots[at] != 0:
            at = (at + 1) & (capacity - 1)
        slots[at] = number + 1
