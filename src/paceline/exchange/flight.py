"""Push and pull against several shards: the ids of a batch to their shards, the rows back in one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Ints
from paceline.exchange.direct import Pulled, Ticket
from paceline.exchange.placement import split_ids
from paceline.exchange.shards import ShardWay
from paceline.params.shard import Gradient
from paceline.params.table import unique

_NO_COUNTS = np.zeros(0, np.int32)


class ShardedRoute:
    """A worker's route, for one thread. shards: in their order; slices: how many dense parameters each holds, in the
    order of the flat vector; width: weights of a row."""

    def __init__(self, shards: Sequence[ShardWay], slices: Sequence[int], width: int) -> None:
        self._shards, self._slices, self._width = shards, list(slices), width
        self._have = [-1] * len(shards)  # version of each slice that the worker's dense vector holds
        self._ticket: Ticket | None = None
        self._fresh = False
        self._bounds: Ints = np.zeros(len(shards) + 1, np.int64)

    def pull(self, ids: Ints, dense: Tensor | None, ticket: Ticket | None = None) -> Pulled:
        """Rows for a batch's ids (int64 [positions], repeats allowed; new ids are created) and the dense parameters, of
        the ticket's version or later. `dense` has to be the same vector in every call."""
        assert ticket is not None
        self._ticket = ticket
        distinct, inverse = self._sorted(ids)
        for k, shard in enumerate(self._shards):
            shard.ask(ticket, self._of(distinct, k), self._have[k] if dense is not None else -1)
        return self._collect(distinct, inverse, dense)

    def read(self, ids: Ints) -> Pulled:
        """Rows for evaluation: nothing is created."""
        distinct, inverse = self._sorted(ids)
        for k, shard in enumerate(self._shards):
            shard.ask_read(self._of(distinct, k))
        return self._collect(distinct, inverse, None)

    def read_dense(self, into: Tensor) -> None:
        """The dense parameters, for evaluation."""
        for shard in self._shards:
            shard.ask_read(np.zeros(0, np.int64))
        self._collect(np.zeros(0, np.int64), np.zeros(0, np.int32), into)

    def push(self, number: int, gradient: Gradient) -> None:
        """Give each shard its part of the gradient that was pulled for last; returns when all of them hold it."""
        ticket = self._ticket
        assert ticket is not None
        assert ticket.gradient == number
        dense = gradient.dense.detach().numpy()
        start = 0
        for k, (shard, size) in enumerate(zip(self._shards, self._slices, strict=True)):
            rows = gradient.row_gradients[self._bounds[k] : self._bounds[k + 1]]
            shard.give(ticket, dense[start : start + size], rows)
            start += size
        for shard in self._shards:
            shard.confirm()

    def carried(self) -> dict[str, int]:
        """Bytes that went over the network, by kind, since the last call; `distinct`: ids of the last pull, `fresh`:
        whether it brought dense parameters."""
        total = {"distinct": int(self._bounds[-1]), "fresh": int(self._fresh)}
        for shard in self._shards:
            for kind, count in shard.carried.items():
                total[kind] = total.get(kind, 0) + count
            shard.carried.clear()
        return total

    def close(self) -> None:
        """Break off every stream."""
        for shard in self._shards:
            shard.close()

    def _sorted(self, ids: Ints) -> tuple[Ints, np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
        """(distinct ids, those of the first shard first; inverse)."""
        distinct, inverse = unique(ids)
        split = split_ids(distinct, len(self._shards))
        self._bounds = split.bounds
        place = np.empty(distinct.shape[0], np.int32)
        place[split.order] = np.arange(distinct.shape[0], dtype=np.int32)
        return distinct[split.order], place[inverse]

    def _of(self, distinct: Ints, shard: int) -> Ints:
        return distinct[self._bounds[shard] : self._bounds[shard + 1]]

    def _collect(
        self, distinct: Ints, inverse: np.ndarray[tuple[int, ...], np.dtype[np.int32]], dense: Tensor | None
    ) -> Pulled:
        weights = np.empty((distinct.shape[0], self._width), np.float32)
        start, self._fresh = 0, False
        for k, (shard, size) in enumerate(zip(self._shards, self._slices, strict=True)):
            found = shard.answer()
            weights[self._bounds[k] : self._bounds[k + 1]] = found.weights
            if dense is not None and found.dense is not None:
                dense[start : start + size] = torch.from_numpy(found.dense)
                self._have[k] = found.version
                self._fresh = True
            start += size
        return Pulled(distinct, weights, inverse, _NO_COUNTS)
