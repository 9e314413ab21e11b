"""A worker's half of a collective step: ids out, rows and partial sums in, the tail on its own batch, gradients out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, final

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Batch, Floats, Ints
from paceline.exchange.codes import Bytes8
from paceline.exchange.cost import Load
from paceline.exchange.dictionary import CAPACITY, IdWriter, Named
from paceline.exchange.direct import Pulled
from paceline.exchange.placement import Split, split_ids
from paceline.exchange.positions import Places, encode, first_fields
from paceline.exchange.substitution import Substitution
from paceline.params.table import unique
from paceline.runtimes.compute import Layout, Replica, row_sums, rows_of

_NO_COUNTS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Asked:
    """A batch, its distinct ids (int64 [n]) by the shard that holds them, and what names them to each; bits: that a
    position is expected to take."""

    batch: Batch
    number: int
    distinct: Ints
    inverse: Places
    split: Split
    named: list[Named]
    bits: float | None

    @property
    def load(self) -> Load:
        samples, positions, distinct = self.batch.samples, self.inverse.shape[0], self.distinct.shape[0]
        fresh, listed = sum(n.fresh for n in self.named), sum(n.listed for n in self.named)
        return Load(samples, positions, distinct, fresh, listed, self.bits)

    def counts(self) -> list[int]:
        """Distinct ids of each shard."""
        found: list[int] = np.diff(self.split.bounds).tolist()
        return found


@dataclass(frozen=True, slots=True)
class Computed:
    """loss: mean over the batch; gradients: dense [parameters], of the moved columns of the distinct ids float32 [n, w]
    and of the partial sums [B, K]."""

    loss: float
    dense: Tensor
    rows: Floats
    sums: Tensor


@final
class Asker:
    """A rank's worker. moved: the parts of a row that are moved; shards: the ranks that hold them, in their order;
    bits: that a position is expected to take; capacity: of its lists of ids, one for each shard, together."""

    def __init__(
        self,
        replica: Replica,
        substitution: Substitution,
        moved: Layout,
        shards: tuple[int, ...],
        bits: float | None = None,
        capacity: int = CAPACITY,
    ) -> None:
        self._replica, self._substitution, self._moved, self._shards = replica, substitution, moved, shards
        self._bits = bits
        fields = moved.singles + moved.bags if substitution.parts else 0
        self._writers = [IdWriter(fields, max(capacity // len(shards), 1)) for _ in shards]

    def ask(self, batch: Batch, number: int) -> Asked:
        """Sort a batch's ids by shard, and name them. number: of its gradient. Whatever is asked has to be sent: shards
        keep account of the ids that they are told."""
        distinct, inverse = unique(batch.flat_ids())
        fields = np.zeros(distinct.shape[0], np.int32)
        if self._substitution.parts:
            fields = first_fields(batch, distinct.shape[0], inverse)
        split = split_ids(distinct, len(self._shards))
        named, order = [], [np.zeros(0, np.int64)]
        for shard, writer in enumerate(self._writers):
            places = split.of(shard)
            named.append(writer.name(distinct[places], fields[places]))
            order.append(places[named[-1].order])
        in_order = Split(np.concatenate(order), split.bounds)
        return Asked(batch, number, distinct, inverse, in_order, named, self._bits)

    def messages(self, asked: Asked) -> dict[str, dict[int, Bytes8]]:
        """To each shard what `Server.pull` reads."""
        head = np.array([asked.batch.samples, asked.number, asked.distinct.shape[0]]).view(np.uint8)
        found: dict[str, dict[int, Bytes8]] = {"ids": {}}
        for rank, named in zip(self._shards, asked.named, strict=True):
            found["ids"][rank] = np.concatenate([head, named.message])
        if self._substitution.parts:
            streams = encode(asked.batch, asked.inverse, asked.split)
            found["positions"] = dict(zip(self._shards, streams, strict=True))
        return found

    def compute(self, asked: Asked, rows: Mapping[int, Tensor], sums: Mapping[int, Tensor]) -> Computed:
        """Loss and gradients from what came of each shard: moved columns of rows, and shares of the partial sums, which
        are added in the order of the shards."""
        width, samples = self._moved.width, asked.batch.samples
        weights = np.empty((asked.distinct.shape[0], width), np.float32)
        weights[asked.split.order] = torch.cat([rows[rank] for rank in self._shards]).numpy().reshape(weights.shape)
        pulled = Pulled(asked.split.order, weights, asked.inverse, _NO_COUNTS)
        given = rows_of(self._moved, asked.batch, pulled)
        leaves = [tensor.requires_grad_() for tensor in given.values()]
        if self._substitution.parts:
            total = sums[self._shards[0]].clone()
            for rank in self._shards[1:]:
                total += sums[rank]
            leaves.append(total.view(samples, self._substitution.width).requires_grad_())
            self._replica.upload()  # an operator may need its parameters for bags that are summed here
            there = self._substitution.given(leaves[-1].to(self._replica.device))
            given |= cast(dict[str, Tensor], there)
        loss, dense, grads = self._replica.differentiate(asked.batch, given, leaves)
        moved = len(self._moved.parts)
        back = row_sums(self._moved, asked.batch, pulled, [g.contiguous().numpy() for g in grads[:moved]])
        return Computed(loss, dense, back, grads[moved] if self._substitution.parts else torch.zeros(0))

    def row_gradients(self, asked: Asked, computed: Computed) -> dict[int, Tensor]:
        """The moved columns' gradients to the shard that holds the row."""
        return {rank: torch.from_numpy(computed.rows[asked.split.of(shard)]) for shard, rank in enumerate(self._shards)}
