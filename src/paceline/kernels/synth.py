"""Kernels of the synthetic click log: counter-based draws, the planted truth, and Criteo text.

Everything is a pure function of (seed key, day, row): a row costs the same whatever came before it, and chunks can be
filled in any order and on any thread. All kernels release the GIL and are single-threaded; the caller runs several.

Shapes: n rows, I numeric fields, F = categorical + multi-hot fields, M multi-hot fields (the last M of F).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from paceline.kernels.jit import kernel

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
I8 = NDArray[np.int8]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
Bits = NDArray[np.bool_]

# Columns of the per-field tables, so that the host and the kernel agree by name rather than by position.
NUM_MU, NUM_SIGMA, NUM_MISSING, NUM_A0, NUM_A1, NUM_B0, NUM_B1 = range(7)
ID_WINDOW, ID_RENEW, ID_ENCODING, ID_KEY = range(4)
LAW_SPAN, LAW_INVERSE, LAW_MISSING, LAW_LINEAR, LAW_LATENT = range(5)
NUM_WIDTH, ID_WIDTH, LAW_WIDTH = 7, 4, 5

PLAIN, HEX32, WIDE63 = range(3)  # how an entity's number is shown as an id: from 1, or scattered over 32 or 63 bits

MAX_BAG = 8
MAX_LINE = 2 + 13 * 11 + 26 * 9  # bytes of the longest Criteo line
BINS = 1 << 16  # bins over the probability in which AUC is counted
LOSS_UNIT = float(1 << 32)  # log loss is summed in integers, so that no order of summation changes it

GUIDE = 4096  # steps of the table of ranks
# Rank at which an id's weights have shrunk to half: what is rarely seen cannot be learned and should hold little of the
# truth. An interaction is seen more rarely than either of its ids, so the latents are closer to the head.
LINEAR_HEAD, LATENT_HEAD = 64.0, 16.0

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_M32, _M63, _LANE = np.uint64(0xFFFFFFFF), np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(0xFFFF)
_S11, _S16, _S27, _S30, _S31, _S32, _S48 = (np.uint64(s) for s in (11, 16, 27, 30, 31, 32, 48))
_TO_UNIT = 1.0 / 9007199254740992.0  # 2^-53
_LANE_CENTRE, _LANE_SPREAD = 32767.5, 2.0 * math.sqrt(3.0) / 65536.0  # a 16-bit lane to mean 0 and variance 1
_LOG1P = np.log1p(np.arange(1024.0))
_STREAM_NUMERIC, _STREAM_BAG, _STREAM_LABEL = 1 << 20, 1 << 21, 1 << 22
_BAG_EDGES = np.array([0.12, 0.34, 0.56, 0.72, 0.83, 0.90, 0.95, 0.98])  # cumulative share of the bags of 0, 1, .. ids


@kernel
def draw(key: np.uint64, stream: np.uint64) -> np.uint64:
    """64 random bits of a key's stream: splitmix64 at the position `stream`."""
    z = np.uint64(key) + (np.uint64(stream) + np.uint64(1)) * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX1
    z = (z ^ (z >> _S27)) * _MIX2
    return z ^ (z >> _S31)


@kernel
def unit(bits: np.uint64) -> float:
    """Uniform in [0, 1) out of the upper 53 of 64 bits."""
    return float(bits >> _S11) * _TO_UNIT


@kernel
def _lane(bits: np.uint64, shift: np.uint64) -> float:
    return (float((bits >> shift) & _LANE) - _LANE_CENTRE) * _LANE_SPREAD


@kernel
def _rank(u: float, span: float, inverse: float) -> int:
    """Rank from 0 of a bounded power law, by its inverse CDF: span = (w+1)^(1-a) - 1, inverse = 1/(1-a).

    For a = 1 they are log(w+1) and 0.
    """
    if inverse == 0.0:
        return int(math.exp(u * span)) - 1
    return int(math.exp(math.log(1.0 + u * span) * inverse)) - 1


@kernel
def guide_ranks(ids: U64, laws: F64, guide: I32) -> None:
    """guide: out, [F, GUIDE + 1]: the rank at each multiple of 1/GUIDE. Where two neighbours agree, no power is needed.

    That is so for most draws of a power law, and the powers are what a row would otherwise spend most of its time on.
    """
    for f in range(guide.shape[0]):
        for k in range(guide.shape[1]):
            rank = _rank(k / GUIDE, laws[f, LAW_SPAN], laws[f, LAW_INVERSE])
            guide[f, k] = min(rank, np.int64(ids[f, ID_WINDOW]) - 1)


@kernel
def _entity(rank: int, window: int, renew: int, day: int) -> int:
    """Number of whoever holds `rank` on `day`: in a field that renews, each slot gets a new holder every `renew` days.

    The slots take turns (7919 is coprime to any `renew` below it), so that every day brings about window/renew new ids.
    """
    if renew == 0:
        return rank
    return rank + window * ((day + (rank * 7919) % renew) // renew)


@kernel
def _show(entity: int, encoding: int, key: np.uint64) -> np.int64:
    """The id that is written for an entity. Each encoding is a bijection: two entities of a field never share an id."""
    if encoding == PLAIN:
        return np.int64(entity + 1)
    x, k = np.uint64(entity), np.uint64(key)
    if encoding == HEX32:
        x = (x ^ k) & _M32
        x = ((x ^ (x >> _S16)) * np.uint64(0x7FEB352D)) & _M32
        x = ((x ^ (x >> np.uint64(15))) * np.uint64(0x846CA68B)) & _M32
        return np.int64(x ^ (x >> _S16))
    x = (x ^ k) & _M63
    x = ((x ^ (x >> _S32)) * _MIX1) & _M63
    x = ((x ^ (x >> _S30)) * _MIX2) & _M63
    return np.int64(x ^ (x >> _S32))


@kernel
def _weights(key: np.uint64, entity: int, rank: int, c: float, s: float) -> tuple[float, ...]:
    """(linear weight, 4 latents) of an entity, each rotated between two independent vectors by the angle of (c, s)."""
    h = draw(key, np.uint64(entity))
    zero = np.uint64(0)
    a, b, m = draw(h, zero), draw(h, np.uint64(1)), draw(h, np.uint64(2))
    shrink = 1.0 / (1.0 + rank / LINEAR_HEAD)
    linear = shrink * (c * _lane(m, zero) + s * _lane(m, _S16))
    shrink = 1.0 / (1.0 + rank / LATENT_HEAD)
    c *= shrink
    s *= shrink
    v0, v1 = c * _lane(a, zero) + s * _lane(b, zero), c * _lane(a, _S16) + s * _lane(b, _S16)
    v2, v3 = c * _lane(a, _S32) + s * _lane(b, _S32), c * _lane(a, _S48) + s * _lane(b, _S48)
    return linear, v0, v1, v2, v3


@kernel
def fill_rows(
    seed_key: np.uint64, day: int, start: int, cos: float, sin: float, numbers: F64, ids: U64, laws: F64, guide: I32,
    numeric: I32, numeric_missing: Bits, categorical: I64, categorical_missing: Bits, bag_values: I64, bag_offsets: I32,
    parts: F64,
) -> None:  # fmt: skip
    """Features of rows start..start+n of a day, and the three parts of their logit under the truth at one angle.

    Args:
        cos, sin: of the angle by which the truth has turned (drift x day of the truth, in radians).
        numbers: [I, NUM_WIDTH]; ids: [F, ID_WIDTH]; laws: [F, LAW_WIDTH]: the tables of the fields.
        numeric, numeric_missing: out, [I, n]; categorical, categorical_missing: out, [F - M, n].
        bag_values: out, [M, >= n * MAX_BAG], filled densely from the left; bag_offsets: out, [M, n + 1].
        parts: out, [3, n]: linear, second-order and numeric part of the logit, before gains and bias.
    """
    n, n_num, n_field, n_cat = parts.shape[1], numbers.shape[0], ids.shape[0], categorical.shape[0]
    day_key = draw(seed_key, np.uint64(day))
    for m in range(n_field - n_cat):
        bag_offsets[m, 0] = 0
    for i in range(n):
        key = draw(day_key, np.uint64(start + i))
        smooth = 0.0
        for f in range(n_num):
            bits = draw(key, np.uint64(_STREAM_NUMERIC + 2 * f))
            if unit(bits) < numbers[f, NUM_MISSING]:
                numeric[f, i] = 0
                numeric_missing[f, i] = True
                continue
            bits = draw(key, np.uint64(_STREAM_NUMERIC + 2 * f + 1))
            z = 0.5 * (_lane(bits, np.uint64(0)) + _lane(bits, _S16) + _lane(bits, _S32) + _lane(bits, _S48))
            x = math.floor(math.exp(numbers[f, NUM_MU] + numbers[f, NUM_SIGMA] * z))
            numeric[f, i] = np.int32(x)
            numeric_missing[f, i] = False
            # The effect is of the number as written, not of z: what the log does not show is no part of the truth.
            log = _LOG1P[int(x)] if x < 1024.0 else math.log(1.0 + x)
            t = (log - numbers[f, NUM_MU]) / numbers[f, NUM_SIGMA]
            bell = 1.0 / (1.0 + t * t)
            smooth += (cos * numbers[f, NUM_A0] + sin * numbers[f, NUM_A1]) * t * math.sqrt(bell)
            smooth += (cos * numbers[f, NUM_B0] + sin * numbers[f, NUM_B1]) * bell
        linear = 0.0
        s0, s1, s2, s3, squares = 0.0, 0.0, 0.0, 0.0, 0.0
        for f in range(n_field):
            window, renew = np.int64(ids[f, ID_WINDOW]), np.int64(ids[f, ID_RENEW])
            m = f - n_cat  # which multi-hot field, if not negative
            length, count, begin = 1, 0, np.int64(0)
            if m >= 0:
                length = np.searchsorted(_BAG_EDGES, unit(draw(key, np.uint64(f))), side="right")
                begin = np.int64(bag_offsets[m, i])
            elif laws[f, LAW_MISSING] > 0.0 and unit(draw(key, np.uint64(_STREAM_BAG + f))) < laws[f, LAW_MISSING]:
                length = 0
            w, v0, v1, v2, v3 = 0.0, 0.0, 0.0, 0.0, 0.0
            for j in range(length):
                u = unit(draw(key, np.uint64(_STREAM_BAG + (f + 1) * 1024 + j if m >= 0 else f)))
                rank = np.int64(guide[f, int(u * GUIDE)])
                if rank != guide[f, int(u * GUIDE) + 1]:
                    rank = min(_rank(u, laws[f, LAW_SPAN], laws[f, LAW_INVERSE]), window - 1)
                entity = _entity(rank, window, renew, day)
                shown = _show(entity, np.int64(ids[f, ID_ENCODING]), ids[f, ID_KEY])
                if m >= 0:
                    seen = False
                    for k in range(begin, begin + count):
                        if bag_values[m, k] == shown:
                            seen = True
                    if seen:  # a bag is a set: a repeated draw is dropped
                        continue
                    bag_values[m, begin + count] = shown
                else:
                    categorical[f, i] = shown
                count += 1
                dw, d0, d1, d2, d3 = _weights(ids[f, ID_KEY], entity, rank, cos, sin)
                w, v0, v1, v2, v3 = w + dw, v0 + d0, v1 + d1, v2 + d2, v3 + d3
            if m >= 0:
                bag_offsets[m, i + 1] = begin + count
            else:
                categorical_missing[f, i] = count == 0
            if count == 0:
                if m < 0:
                    categorical[f, i] = 0
                continue
            linear += w * laws[f, LAW_LINEAR] / count  # a bag counts as the mean of its ids
            size = laws[f, LAW_LATENT] / count
            v0, v1, v2, v3 = v0 * size, v1 * size, v2 * size, v3 * size
            s0, s1, s2, s3 = s0 + v0, s1 + v1, s2 + v2, s3 + v3
            squares += v0 * v0 + v1 * v1 + v2 * v2 + v3 * v3
        parts[0, i] = linear
        parts[1, i] = 0.5 * (s0 * s0 + s1 * s1 + s2 * s2 + s3 * s3 - squares)
        parts[2, i] = smooth


@kernel
def draw_clicks(
    seed_key: np.uint64, day: int, start: int, parts: F64, gains: F64, bias: float, probability: F64, label: I8
) -> None:
    """probability: out, [n]: sigmoid(bias + gains [3] . parts [3, n]); label: out, [n]: 1 with that probability."""
    day_key = draw(seed_key, np.uint64(day))
    for i in range(probability.shape[0]):
        logit = bias + gains[0] * parts[0, i] + gains[1] * parts[1, i] + gains[2] * parts[2, i]
        probability[i] = 1.0 / (1.0 + math.exp(-logit))
        key = draw(day_key, np.uint64(start + i))
        label[i] = 1 if unit(draw(key, np.uint64(_STREAM_LABEL))) < probability[i] else 0


@kernel
def count_scores(probability: F64, label: I8, counts: I64) -> int:
    """Adds rows to counts [2, BINS] (by label and by bin of the probability); returns the log loss in 1/LOSS_UNIT."""
    loss = 0
    for i in range(probability.shape[0]):
        p = probability[i]
        counts[label[i], min(int(p * BINS), BINS - 1)] += 1
        chosen = p if label[i] == 1 else 1.0 - p
        loss += int(-math.log(max(chosen, 1e-300)) * LOSS_UNIT)
    return loss


@kernel
def criteo_text(
    label: I8, numeric: I32, numeric_missing: Bits, categorical: I64, categorical_missing: Bits,
    first: int, stop: int, text: U8,
) -> int:  # fmt: skip
    """Writes rows first..stop as Criteo lines into text; returns the number of bytes.

    `label` is [n], the fields are [I, n] and [C, n]; text must hold (stop - first) * MAX_LINE bytes. Numbers
    are non-negative; categoricals are written as 8 hex digits; what is missing is empty.
    """
    at = 0
    for i in range(first, stop):
        text[at] = 48 + label[i]
        at += 1
        for f in range(numeric.shape[0]):
            text[at] = 9
            at += 1
            if numeric_missing[f, i]:
                continue
            x, edge = np.int64(numeric[f, i]), np.int64(10)
            while x >= edge:
                at += 1
                edge *= 10
            at += 1
            back = at
            while edge > 1:  # digits from the right
                back -= 1
                text[back] = np.uint8(48 + x % 10)
                x //= 10
                edge //= 10
        for f in range(categorical.shape[0]):
            text[at] = 9
            at += 1
            if categorical_missing[f, i]:
                continue
            v = np.uint32(categorical[f, i])
            for k in range(8):
                digit = np.int64(v >> np.uint32(28 - 4 * k)) & 15
                text[at + k] = np.uint8(digit + (48 if digit < 10 else 87))
            at += 8
        text[at] = 10
        at += 1
    return at
