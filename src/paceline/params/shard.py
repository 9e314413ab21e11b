"""A shard: the rows whose ids hash to it and the dense parameters it holds, changed one update at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.params.dense import DenseBlock
from paceline.params.sparse import Floats
from paceline.params.table import REDUCE, Ints, RowGradient, Table


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a worker pushes: dense float32 [parameters]; rows int64 [n] (distinct) with row_gradients [n, weights].

    Both are of the mean loss over the batch's samples.
    """

    dense: Tensor
    rows: Ints
    row_gradients: Floats


@dataclass(frozen=True, slots=True)
class Weighted:
    """A gradient and what the pace machine said of it (see `paceline.pace.Part`)."""

    gradient: Gradient
    share: float
    factor: float
    token: int


class Shard:
    """One state, whatever the route: no second table for sync. Not thread-safe."""

    def __init__(self, table: Table, dense: DenseBlock, row_rule: str) -> None:
        self.table = table
        self.dense = dense
        self.version = 0
        self._rule = REDUCE[row_rule]

    def apply(self, version: int, parts: list[Weighted], row_limit: int | None) -> None:
        """Make version `version`: sum the parts in their order, then one optimizer step on dense and touched rows.

        If every part is cut, the dense optimizer is not called: no slot decay, no momentum step (gba.md, section 4).
        """
        total: Tensor | None = None
        for part in parts:
            scale = part.share * part.factor
            if scale == 0.0:
                continue
            if total is None:
                total = part.gradient.dense * scale
            else:
                total.add_(part.gradient.dense * scale)
        if total is not None and total.numel():
            self.dense.apply(total)
        rows = [RowGradient(p.gradient.rows, p.gradient.row_gradients, p.share, p.token) for p in parts]
        if rows:
            self.table.apply(rows, version, row_limit, self._rule)
        self.version = version

    @torch.no_grad()
    def pull_dense(self, into: Tensor) -> None:
        """Copy the dense parameters into a flat vector of the same length."""
        into.copy_(self.dense.flat)
