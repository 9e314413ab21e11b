"""Which shard holds an id: a hash of the id, so that any process knows it without asking."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.batch import Ints
from paceline.kernels.placement import owners, split


@dataclass(frozen=True, slots=True)
class Split:
    """Ids by the shard that holds them: order int64 [n] puts those of shard 0 first, then those of shard 1 and so on
    (within a shard as they came); bounds int64 [shards + 1]: where each shard's begin in that order."""

    order: Ints
    bounds: Ints

    def of(self, shard: int) -> Ints:
        """Places in the original ids of those that `shard` holds."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]


def owner_of(ids: Ints, shards: int) -> npt.NDArray[np.int32]:
    """The shard of each id, int32 [n], of `shards` in all. Independent of the table's own hash."""
    out = np.empty(ids.shape[0], np.int32)
    owners(ids, shards, out)
    return out


def split_ids(ids: Ints, shards: int) -> Split:
    """Ids (int64 [n]) by the shard that holds them."""
    order, bounds = np.empty(ids.shape[0], np.int64), np.zeros(shards + 1, np.int64)
    split(owner_of(ids, shards), order, bounds)
    return Split(order, bounds)
