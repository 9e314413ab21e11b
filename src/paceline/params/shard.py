"""A shard: the rows whose ids hash to it and the dense parameters it holds, changed one update at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paceline.pace import Weight
from paceline.params.dense import DenseBlock
from paceline.params.sparse import Clock, Floats
from paceline.params.table import NO_LAW, REDUCE, Counts, Ints, RowGradient, Table

LAW_LENGTH = 1 << 16  # staleness up to which a row's weight is told apart


@dataclass(frozen=True, slots=True)
class Applied:
    """The sums of the gradients that rows and dense parameters had had at a pull (see `paceline.params.delay`).

    rows float32 [n, weights], dense float32 [parameters]; None where the optimizer does not ask.
    """

    rows: Floats | None
    dense: Tensor | None

    @property
    def bytes(self) -> int:
        """What they add to a pull, and to a push."""
        return (0 if self.rows is None else self.rows.nbytes) + (0 if self.dense is None else 4 * self.dense.numel())


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a worker pushes: dense float32 [parameters]; rows int64 [n] (distinct) with row_gradients [n, weights];
    counts int32 [n]: the updates that the rows had had when they were pulled; applied: what the pull brought along of
    them, for an optimizer that asks what a gradient missed.

    Both are of the mean loss over the batch's samples.
    """

    dense: Tensor
    rows: Ints
    row_gradients: Floats
    counts: Counts | None = None
    applied: Applied | None = None

    @property
    def bytes(self) -> int:
        """What a push carries: dense float32, ids int64 and their gradients float32, and `applied`."""
        sums = 0 if self.applied is None else self.applied.bytes
        return int(4 * self.dense.numel() + 8 * self.rows.shape[0] + self.row_gradients.nbytes) + sums

    def norm(self) -> float:
        """Over dense parameters and rows together; inf if it is not finite in float32."""
        squares = float(self.dense.dot(self.dense)) + float(np.vdot(self.row_gradients, self.row_gradients))
        return math.sqrt(squares) if math.isfinite(squares) else math.inf


@dataclass(frozen=True, slots=True)
class Weighted:
    """A gradient and what the pace machine said of it (see `paceline.pace.Part`)."""

    gradient: Gradient
    share: float
    factor: float
    token: int
    weight: float = 1.0


class Shard:
    """One state, whatever the route: no second table for sync. Not thread-safe."""

    def __init__(self, table: Table, dense: DenseBlock, row_rule: str) -> None:
        self.table = table
        self.dense = dense
        self.version = 0
        self._rule = REDUCE[row_rule]
        self._law, self._law_of = NO_LAW, (Weight(), -1)

    def apply(
        self,
        version: int,
        samples: int,
        parts: list[Weighted],
        row_limit: int | None,
        weighing: Weight | None = None,
        workers: int = 0,
    ) -> float:
        """Make version `version`: sum the parts in their order, then one optimizer step on dense and touched rows.

        If every part is cut, the dense optimizer is not called: no slot decay, no momentum step (gba.md, section 4).
        samples: applied so far, this update included; weighing, workers: see `paceline.pace.Apply`. Returns the norm
        of the gradient that was applied, dense parameters and rows together.
        """
        clock = Clock(version, samples)
        on_step, own = (
            weighing is not None and weighing.scales == "step",
            weighing is not None and weighing.rows == "row",
        )
        total: Tensor | None = None
        for part in parts:
            scale = part.share * part.factor
            if scale == 0.0:
                continue
            if len(parts) == 1 and scale == 1.0:
                total = part.gradient.dense  # every update of a pace that does not aggregate: spare the copy
            elif total is None:
                total = part.gradient.dense * scale
            else:
                total.add_(part.gradient.dense * scale)
        if total is not None and total.numel():
            self.dense.apply(total, clock, _dense_step(parts) if on_step else 1.0, self._late(parts))
        rows = [
            RowGradient(
                g.rows, g.row_gradients, p.share, p.token, 1.0 if own else p.weight, g.counts,
                None if g.applied is None else g.applied.rows,
            )
            for p, g in ((p, p.gradient) for p in parts)
        ]  # fmt: skip
        squares = 0.0 if total is None else float(total.dot(total))
        if rows:
            self.table.apply(rows, clock, row_limit, self._rule, self._row_law(weighing, workers), on_step)
            squares += self.table.squares
        self.version = version
        return math.sqrt(squares) if math.isfinite(squares) else math.inf

    def applied(self, rows: Ints) -> Applied | None:
        """What a pull of `rows` (int64 [n]) and of the dense parameters brings along, if an optimizer asks for it."""
        found = Applied(self.table.applied(rows), self.dense.applied())
        return None if found.rows is None and found.dense is None else found

    def _late(self, parts: list[Weighted]) -> tuple[Tensor, Tensor] | None:
        """(overlap, missed) of the dense parameters, see `paceline.params.delay`."""
        now = self.dense.applied()
        if now is None:
            return None
        overlap, missed, kept = torch.zeros_like(now), torch.zeros_like(now), 0.0
        for part in parts:
            scale, applied = part.share * part.factor, part.gradient.applied
            if scale == 0.0:
                continue
            kept += part.share
            if applied is not None and applied.dense is not None:
                behind = now - applied.dense
                overlap.add_(part.gradient.dense * behind, alpha=scale)
                missed.add_(behind, alpha=part.share)
        return overlap, missed.div_(kept)

    def _row_law(self, weight: Weight | None, workers: int) -> Floats:
        """The law as a table over a row's staleness, made anew only when it changes."""
        if weight is None or weight.rows != "row":
            return NO_LAW
        workers = workers if weight.law == "relative" else 0
        if self._law_of != (weight, workers):
            self._law_of = (weight, workers)
            self._law = np.array([weight.factor(s, workers) for s in range(LAW_LENGTH)], np.float32)
        return self._law

    @torch.no_grad()
    def pull_dense(self, into: Tensor) -> None:
        """Copy the dense parameters into a flat vector of the same length."""
        into.copy_(self.dense.flat)


def _dense_step(parts: list[Weighted]) -> float:
    """The weight of the dense step: that of the parts which were not cut, by their shares."""
    taken = [(p.share, p.weight) for p in parts if p.factor > 0.0]
    return sum(share * weight for share, weight in taken) / sum(share for share, _ in taken)
