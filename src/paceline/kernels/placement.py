"""Ids to shards."""

from __future__ import annotations

import numpy as np

from paceline.kernels.hashing import mix64
from paceline.kernels.jit import kernel

_APART = np.uint64(0x5851F42D4C957F2D)  # so that the ids of one shard spread over its index as all ids would


@kernel
def owners(ids, shards, out):
    """ids int64 [n]; out int32 [n]: a number below `shards` for each."""
    count = np.uint64(shards)
    for i in range(ids.shape[0]):
        hashed = mix64(np.uint64(ids[i]) ^ _APART)
        out[i] = np.int32(((hashed >> np.uint64(32)) * count) >> np.uint64(32))


@kernel
def split(owner, order, bounds):
    """Stable sort of places by owner: owner int32 [n]; order int64 [n]; bounds int64 [shards + 1], zeros before."""
    shards = bounds.shape[0] - 1
    for i in range(owner.shape[0]):
        bounds[owner[i] + 1] += 1
    for s in range(shards):
        bounds[s + 1] += bounds[s]
    place = bounds[:shards].copy()
    for i in range(owner.shape[0]):
        order[place[owner[i]]] = i
        place[owner[i]] += 1
