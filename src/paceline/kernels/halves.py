"""Weights of rows in bfloat16, half as long: widened where they are read, rounded by chance where they are written.

A record is then [weights uint16, padded to 4 bytes | slots float32]. A float32 lies between two bfloat16 numbers, and
it becomes the upper one with the probability of how near it is: its lower 16 bits are added to 16 random ones. So small
steps are taken on average, which rounding to the nearest would lose for good (Gupta et al., ICML 2015).

The random bits are a hash of the number itself, its place in the row and the version that it is written for (murmur3's
finaliser): the same whatever the number of threads and shards, and wherever the row lies.
"""

from __future__ import annotations

import numpy as np

from paceline.kernels.hashing import mix64
from paceline.kernels.jit import kernel
from paceline.kernels.pointers import floats, halves, words

U = np.uint32
_UP, _EXPONENT, _QUIET = U(16), U(0x7F800000), U(0x00400000)
_PLACE, _FIRST, _SECOND = U(0x9E3779B9), U(0x85EBCA6B), U(0xC2B2AE35)


@kernel
def stored(weights):
    """How many float32 the weights of a row take."""
    return (weights + 1) // 2


@kernel
def salt_of(version):
    """What the random bits of a version begin with."""
    return U(mix64(np.uint64(version)) & np.uint64(0xFFFFFFFF))


@kernel
def chance(bits, salt, place):
    """16 random bits for the number with these bits, at this place of its row."""
    h = U(U(bits ^ salt) + U(U(place) * _PLACE))
    h = U(U(h ^ (h >> U(16))) * _FIRST)
    h = U(U(h ^ (h >> U(13))) * _SECOND)
    return U(h >> _UP)


@kernel
def nearest(bits):
    """What is added to round to the nearest, ties to even."""
    return U(U(0x7FFF) + U((bits >> _UP) & U(1)))


@kernel
def rounded(bits, more):
    """A bfloat16 out of the bits of a float32, after `more` was added. What is not finite stays what it is."""
    if (bits & _EXPONENT) == _EXPONENT:
        return np.uint16(U(bits | (_QUIET if bits & U(0x007FFFFF) else U(0))) >> _UP)
    return np.uint16(U(bits + more) >> _UP)


@kernel
def widen(home, at, weights):
    """The weights at address `home`, as float32 at address `at`."""
    source, into = halves(home, weights), words(at, weights)
    for j in range(weights):
        into[j] = U(source[j]) << _UP


@kernel
def narrow(at, home, weights, salt):
    """Float32 at address `at` to where the weights are, rounded by chance."""
    source, into = words(at, weights), halves(home, weights)
    for j in range(weights):
        bits = source[j]
        into[j] = rounded(bits, chance(bits, salt, j))


@kernel
def narrow_nearest(at, home, weights):
    """The same, rounded to the nearest."""
    source, into = words(at, weights), halves(home, weights)
    for j in range(weights):
        into[j] = rounded(source[j], nearest(source[j]))


@kernel
def lift(home, at, weights, slots):
    """A whole record, as float32 [weights + slots] at address `at`."""
    widen(home, at, weights)
    source, into = floats(home + stored(weights) * 4, slots), floats(at + weights * 4, slots)
    for j in range(slots):
        into[j] = source[j]


@kernel
def lower(at, home, weights, slots, salt):
    """The way back of `lift`, weights rounded by chance."""
    narrow(at, home, weights, salt)
    source, into = floats(at + weights * 4, slots), floats(home + stored(weights) * 4, slots)
    for j in range(slots):
        into[j] = source[j]
