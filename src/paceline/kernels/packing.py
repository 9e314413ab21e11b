"""Whole numbers in few bits, and which of a bag's ids a shard holds.

Three codes: each in as many bits as the largest needs; a set by the gaps between its numbers (Golomb, 1966; Rice and
Plaunt, 1971); and numbers of which low ones are frequent, as under a power law, by their lengths in bits (Elias, 1975).
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.jit import kernel

BLOCK = 64  # gaps that share a parameter


def set_room(count: int) -> int:
    """Bytes that `put_set` needs at most: a gap's high part is below 2 on average in a block, so ones are few."""
    return 6 * count + 16


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


@kernel
def _put(out, at, value, bits):
    """Write `bits` <= 32 of value from bit `at` on, where there are zeros so far. Returns the next bit."""
    rest = np.uint64(value) << np.uint64(at & 7)
    place, left = at >> 3, (at & 7) + bits
    while left > 0:
        out[place] |= np.uint8(rest & np.uint64(255))
        rest >>= np.uint64(8)
        place += 1
        left -= 8
    return at + bits


@kernel
def _get(data, at, bits):
    place, shift, left = at >> 3, at & 7, (at & 7) + bits
    value, done = np.uint64(0), 0
    while left > 0:
        value |= np.uint64(data[place]) << np.uint64(done)
        place += 1
        done += 8
        left -= 8
    return np.int64((value >> np.uint64(shift)) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))


@kernel
def _ones(data, at):
    """How many ones there are from bit `at` on before the next zero."""
    count = 0
    while data[at >> 3] >> (at & 7) & 1:
        count += 1
        at += 1
    return count


@kernel
def put_set(numbers, out):
    """Rice code of ascending numbers int64 [n] below 2^31, in blocks of BLOCK gaps with a parameter each. out: zeros,
    at least set_room(n) bytes. Returns the bits used."""
    at, last = 0, np.int64(-1)
    for start in range(0, numbers.shape[0], BLOCK):
        stop = min(start + BLOCK, numbers.shape[0])
        mean, low = (numbers[stop - 1] - last - (stop - start)) // (stop - start), 0
        while mean >> (low + 1):
            low += 1
        at = _put(out, at, low, 5)
        for i in range(start, stop):
            gap = numbers[i] - last - 1
            for _ in range(gap >> low):
                at = _put(out, at, 1, 1)
            at = _put(out, at + 1, gap & ((1 << low) - 1), low)
            last = numbers[i]
    return at


@kernel
def get_set(data, out):
    """The way back of `put_set`: out int64 [n]. Returns the bits read."""
    at, last = 0, np.int64(-1)
    for start in range(0, out.shape[0], BLOCK):
        low, at = _get(data, at, 5), at + 5
        for i in range(start, min(start + BLOCK, out.shape[0])):
            high = _ones(data, at)
            at += high + 1
            last += 1 + ((high << low) | _get(data, at, low))
            at += low
            out[i] = last
    return at


@kernel
def _length(value):
    """Bits of value >= 0: 0, 1, 2, 2, 3, ..."""
    bits = 0
    while value >> bits:
        bits += 1
    return bits


@kernel
def measure_lengths(values, base, each):
    """each uint8 [n] = the length of every value minus base. Returns how many bits they take in `put_lengths`, without
    its zeros."""
    total = 0
    for i in range(values.shape[0]):
        each[i] = _length(values[i] - base)
        total += max(each[i], 1)
    return total


@kernel
def put_lengths(counts, values, base, lengths, each, out, order):
    """Sample b has counts[b] of the values int64 [n]. They go by the number of bits of value minus base, which has
    `lengths` different ones: for each the sample's as a one and the bits below the highest, then a zero. So few bits
    tell the low values, and no count is needed. each: of `measure_lengths`; out: zeros; order int64 [n]: of the values,
    as they went."""
    at, begin, done = 0, 0, 0
    for b in range(counts.shape[0]):
        stop = begin + counts[b]
        for length in range(lengths):
            low = max(length - 1, 0)
            for i in range(begin, stop):
                if each[i] == length:
                    at = _put(out, at, 1 | (((values[i] - base) & ((1 << low) - 1)) << 1), 1 + low)
                    order[done] = i
                    done += 1
            at += 1
        begin = stop


@kernel
def get_lengths(data, base, lengths, counts, values):
    """The way back of `put_lengths`: counts int64 [B], values int64 [n]."""
    at, done = 0, 0
    for b in range(counts.shape[0]):
        before = done
        for length in range(lengths):
            low = max(length - 1, 0)
            while data[at >> 3] >> (at & 7) & 1:
                high = (1 << length) >> 1
                values[done] = base + (high | _get(data, at + 1, low))
                done += 1
                at += 1 + low
            at += 1
        counts[b] = done - before
