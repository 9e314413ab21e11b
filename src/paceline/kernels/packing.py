"""Small whole numbers in as few bits as the largest needs, and which of a bag's ids a shard holds."""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel


@kernel
def pack(values, base, bits, out):
    """out uint8 [ceil(n * bits / 8)], zeros before = values int64 [n] minus base, `bits` <= 32 each, low first."""
    at = 0
    for i in range(values.shape[0]):
        rest = np.uint64(values[i] - base) << np.uint64(at & 7)
        place, left = at >> 3, (at & 7) + bits
        while left > 0:
            out[place] |= np.uint8(rest & np.uint64(255))
            rest >>= np.uint64(8)
            place += 1
            left -= 8
        at += bits


@kernel
def unpack(data, base, bits, out):
    """The way back of `pack`: out int64 [n]."""
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    at = 0
    for i in range(out.shape[0]):
        place, shift, left = at >> 3, at & 7, (at & 7) + bits
        value, done = np.uint64(0), 0
        while left > 0:
            value |= np.uint64(data[place]) << np.uint64(done)
            place += 1
            done += 8
            left -= 8
        out[i] = np.int64((value >> np.uint64(shift)) & mask) + base
        at += bits


@kernel
def held(inverse, offsets, owner, local, shard, counts, index, taken):
    """The part of a field that `shard` holds: sample b has the positions offsets[b] to offsets[b + 1] of inverse int32.

    owner int32, local int64: of each distinct id, its shard and its place among those of that shard. counts int64 [B]:
    how many of a sample's positions; index, taken int64 [positions]: their ids' places, and which positions they are.
    Returns how many there are in all.
    """
    found = 0
    for b in range(counts.shape[0]):
        before = found
        for i in range(offsets[b], offsets[b + 1]):
            if owner[inverse[i]] == shard:
                index[found] = local[inverse[i]]
                taken[found] = i
                found += 1
        counts[b] = found - before
    return found
