"""Whole numbers as bytes: the codes of `paceline.kernels.packing`, each with what is needed to read it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.batch import Ints
from paceline.kernels import packing

Bytes8 = npt.NDArray[np.uint8]


def packed(values: Ints) -> Bytes8:
    """5 bytes (smallest value uint32, bits of a value uint8) and the values, in as many bits as the largest needs."""
    base, bits = _range(values)
    out = np.zeros(5 + (values.shape[0] * bits + 7) // 8, np.uint8)
    out[:4], out[4] = np.array([base], "<u4").view(np.uint8), bits
    packing.pack(values, base, bits, out[5:])
    return out


def unpacked(data: Bytes8, at: int, count: int) -> tuple[Ints, int]:
    """(values int64 [count], where the next thing begins)."""
    base, bits = int(data[at : at + 4].copy().view("<u4")[0]), int(data[at + 4])
    start, stop = at + 5, at + 5 + (count * bits + 7) // 8
    out = np.empty(count, np.int64)
    packing.unpack(data[start:stop], base, bits, out)
    return out, stop


def packed_set(numbers: Ints) -> Bytes8:
    """Numbers int64 [n] in ascending order, none twice, by their gaps."""
    out = np.zeros(packing.set_room(numbers.shape[0]), np.uint8)
    bits = packing.put_set(numbers, out)
    return out[: (bits + 7) // 8]


def unpacked_set(data: Bytes8, at: int, count: int) -> tuple[Ints, int]:
    """(numbers int64 [count], where the next thing begins)."""
    out = np.empty(count, np.int64)
    bits = packing.get_set(data[at:], out)
    return out, at + (bits + 7) // 8


def by_length(counts: Ints, values: Ints) -> tuple[Bytes8, Ints]:
    """Sample b's counts[b] values in few bits where low ones are frequent: 13 bytes (smallest value, number of values
    and bytes that follow uint32, lengths uint8) and they; and the order int64 [n] in which they are read."""
    base, bits = _range(values)
    each = np.empty(values.shape[0], np.uint8)
    size = (packing.measure_lengths(values, base, each) + counts.shape[0] * (bits + 1) + 7) // 8
    out, order = np.zeros(13 + size, np.uint8), np.empty(values.shape[0], np.int64)
    out[:12], out[12] = np.array([base, values.shape[0], size], "<u4").view(np.uint8), bits + 1
    packing.put_lengths(counts, values, base, bits + 1, each, out[13:], order)
    return out, order


def from_lengths(data: Bytes8, at: int, samples: int) -> tuple[Ints, Ints, int]:
    """(counts int64 [samples], values int64 [n], where the next thing begins)."""
    base, count, size = data[at : at + 12].copy().view("<u4").tolist()
    counts, values = np.empty(samples, np.int64), np.empty(count, np.int64)
    packing.get_lengths(data[at + 13 : at + 13 + size], base, int(data[at + 12]), counts, values)
    return counts, values, at + 13 + size


def _range(values: Ints) -> tuple[int, int]:
    """The smallest, and how many bits the largest has above it."""
    if not values.shape[0]:
        return 0, 0
    base = int(values.min())
    return base, (int(values.max()) - base).bit_length()
