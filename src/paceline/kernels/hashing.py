"""64-bit hashes: the id of a (field, value) and the counter-based numbers that rows start from.

    id(field, value)  = XXH64(value's bytes, seed = XXH64(field's name in UTF-8, seed = 0))
    id(field, bucket) = mix64(XXH64(field's name) xor bucket)       for numbers that are bucketed
    missing value     = id(field, b"")

XXH64 is the published algorithm (github.com/Cyan4973/xxHash, doc/xxhash_spec.md); mix64 is the finaliser of
SplitMix64 (Steele, Lea, Flood, OOPSLA 2014). Both are fixed for all versions of paceline: tests hold their values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.kernels.jit import kernel

U = np.uint64
P1, P2, P3 = U(0x9E3779B185EBCA87), U(0xC2B2AE3D27D4EB4F), U(0x165667B19E3779F9)
P4, P5 = U(0x85EBCA77C2B2AE63), U(0x27D4EB2F165667C5)
GOLDEN = U(0x9E3779B97F4A7C15)
M1, M2 = U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)


@kernel
def mix64(x):
    """SplitMix64's finaliser: a bijection of 64-bit integers."""
    x = (x ^ (x >> U(30))) * M1
    x = (x ^ (x >> U(27))) * M2
    return x ^ (x >> U(31))


@kernel
def _rotl(x, r):
    return (x << U(r)) | (x >> U(64 - r))


@kernel
def _read64(buf, i):
    v = U(0)
    for k in range(8):
        v |= U(buf[i + k]) << U(8 * k)
    return v


@kernel
def _round(acc, lane):
    return _rotl(acc + lane * P2, 31) * P1


@kernel
def xxh64(buf, start, end, seed):
    """XXH64 of buf[start:end] (uint8) with a uint64 seed, as uint64."""
    n = end - start
    i = start
    if n >= 32:
        a, b, c, d = seed + P1 + P2, seed + P2, seed, seed - P1
        while i + 32 <= end:
            a = _round(a, _read64(buf, i))
            b = _round(b, _read64(buf, i + 8))
            c = _round(c, _read64(buf, i + 16))
            d = _round(d, _read64(buf, i + 24))
            i += 32
        h = _rotl(a, 1) + _rotl(b, 7) + _rotl(c, 12) + _rotl(d, 18)
        for lane in (a, b, c, d):
            h = (h ^ _round(U(0), lane)) * P1 + P4
    else:
        h = seed + P5
    h += U(n)
    while i + 8 <= end:
        h = _rotl(h ^ _round(U(0), _read64(buf, i)), 27) * P1 + P4
        i += 8
    if i + 4 <= end:
        word = U(0)
        for k in range(4):
            word |= U(buf[i + k]) << U(8 * k)
        h = _rotl(h ^ (word * P1), 23) * P2 + P3
        i += 4
    while i < end:
        h = _rotl(h ^ (U(buf[i]) * P5), 11) * P1
        i += 1
    h = (h ^ (h >> U(33))) * P2
    h = (h ^ (h >> U(29))) * P3
    return h ^ (h >> U(32))


@kernel
def hash_spans(buf, starts, ends, seed, out):
    """out[r] = id of the bytes buf[starts[r]:ends[r]]; out is int64 [rows], perhaps strided."""
    for r in range(starts.shape[0]):
        out[r] = np.int64(xxh64(buf, np.int64(starts[r]), np.int64(ends[r]), seed))


@kernel
def hash_integers(values, missing, seed, out):
    """out[r] = id of values[r] (int64) written in decimal, without making the text; that of no bytes where missing[r].
    Most logs hold ids as whole numbers, and to write them out for Arrow takes longer than to hash them."""
    text = np.empty(20, np.uint8)  # -9223372036854775808
    absent = np.int64(xxh64(text, 0, 0, seed))
    for r in range(values.shape[0]):
        if missing[r]:
            out[r] = absent
            continue
        rest = U(values[r])
        if values[r] < 0:
            rest = U(0) - rest
        start = 20
        while True:
            start -= 1
            tenth = rest // U(10)
            text[start] = np.uint8(U(48) + (rest - tenth * U(10)))
            rest = tenth
            if rest == U(0):
                break
        if values[r] < 0:
            start -= 1
            text[start] = np.uint8(45)
        out[r] = np.int64(xxh64(text, start, 20, seed))


@kernel
def log_bucket(x):
    """The bucket of a finite number: floor(log(x)^2) beyond 2 (the habit of the Criteo competition), quarters within.

    Whole numbers up to 2 have buckets of their own, numbers beyond are ever wider ones; negative ones mirror them.
    """
    if x > 2.0:
        return np.int64(100 + np.floor(np.log(x) ** 2))
    if x < -2.0:
        return np.int64(-100 - np.floor(np.log(-x) ** 2))
    return np.int64(np.floor(4.0 * x))


@kernel
def hash_buckets(values, missing, seed, out):
    """out[r] = id of the bucket of values[r] (float64), or of the missing value where missing[r]."""
    absent = np.int64(xxh64(np.zeros(1, np.uint8), 0, 0, seed))
    for r in range(values.shape[0]):
        if missing[r]:
            out[r] = absent
        else:
            out[r] = np.int64(mix64(seed ^ U(log_bucket(values[r]))))


@kernel
def start_row(row, seed, key, bounds):
    """Fill `row` with uniform numbers in [-bounds[j], bounds[j]) that depend on (seed, key, j) alone."""
    state = mix64(U(key) ^ mix64(seed + GOLDEN))
    for j in range(bounds.shape[0]):
        state += GOLDEN
        unit = np.float32(mix64(state) >> U(40)) * np.float32(2.0**-23) - np.float32(1.0)
        row[j] = unit * bounds[j]


def text_id(text: bytes, seed: int) -> int:
    """XXH64 of `text` as an unsigned 64-bit integer."""
    buf = np.frombuffer(text, np.uint8) if text else np.zeros(1, np.uint8)
    return int(xxh64(buf, 0, len(text), U(seed)))


def field_seed(name: str) -> np.uint64:
    """The seed of a field's ids."""
    return U(text_id(name.encode(), 0))


def missing_id(name: str) -> int:
    """The id (signed 64 bits, as in tables) of a missing value of field `name`."""
    ids: npt.NDArray[np.int64] = np.array([text_id(b"", int(field_seed(name)))], np.uint64).view(np.int64)
    return int(ids[0])
