"""A shard's half of a collective step: rows and partial sums out, gradients in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Floats, Ints
from paceline.exchange.codes import Bytes8
from paceline.exchange.cost import Load
from paceline.exchange.dictionary import IdReader
from paceline.exchange.direct import DirectRoute, Pulled
from paceline.exchange.masking import Mask, largest
from paceline.exchange.positions import Cells, decode, pooled, spread
from paceline.exchange.substitution import Substitution
from paceline.exchange.thin import Thin, thin
from paceline.params.shard import Gradient
from paceline.runtimes.compute import Layout

HEAD = 24  # bytes before a request's ids
_NO_POSITIONS = np.zeros(0, np.int32)


@dataclass(slots=True)
class Served:
    """What a shard does for one worker's batch: the rows that it holds of it, where they stand in the batch, the sums
    [B, K] computed from the leaves (pooled rows of each part), and their gradients float32 [n, row width]."""

    number: int
    load: Load
    pulled: Pulled
    gradients: Floats
    cells: list[Cells] = field(default_factory=list)
    leaves: dict[str, Tensor] = field(default_factory=dict)
    mask: Mask | None = None  # which of the sums were sent, if not all
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))


@final
class Server:
    """A rank's shard. columns: of a row, those that are moved."""

    def __init__(self, route: DirectRoute, substitution: Substitution, layout: Layout, columns: Ints) -> None:
        self._route, self._substitution, self._layout, self._columns = route, substitution, layout, columns
        self._begins = dict(zip((p.name for p in layout.parts), layout.begins(), strict=True))
        self._fields = layout.singles + layout.bags
        self._named: dict[int, IdReader] = {}  # of each worker; rows keep their numbers, so they are found once

    def pull(self, requests: Mapping[int, Bytes8]) -> dict[int, Served]:
        """The rows that ranks ask for; unknown ids get new ones. A request: samples, gradient number and distinct ids
        of the whole batch (int64), those that this shard holds (`IdReader`), positions."""
        served = {}
        for rank, data in requests.items():
            samples, number, distinct = data[:HEAD].copy().view(np.int64).tolist()
            if rank not in self._named:
                self._named[rank] = IdReader(self._fields if self._substitution.parts else 0)
            rows, rest = self._named[rank].read(data[HEAD:], self._route.rows_of)
            pulled = self._route.pull_rows(rows, _NO_POSITIONS, None)
            gradients = np.zeros((rows.shape[0], self._layout.width), np.float32)
            job = Served(number, Load(samples, 0, distinct), pulled, gradients)
            if self._substitution.parts:
                job.cells = decode(rest, samples, self._fields)
            served[rank] = job
        return served

    def dense(self) -> Tensor:
        """This shard's slice of the dense parameters, a copy."""
        flat = torch.empty(self._route.shard.dense.flat.shape)
        with self._route.whole():
            self._route.shard.pull_dense(flat)
        return flat

    def rows(self, job: Served) -> Tensor:
        """The moved columns of the rows that were asked for, in the order of the request."""
        return torch.from_numpy(job.pulled.weights[:, self._columns])

    def sums(self, job: Served) -> Tensor:
        """This shard's share of the partial sums, [B, K]."""
        for part in self._substitution.parts:
            values = pooled(job.pulled.weights, job.cells, self._begins[part.name], part.width)
            job.leaves[part.name] = torch.from_numpy(values).requires_grad_()
        if job.leaves:
            job.sums = self._substitution.partial(job.leaves)
        return job.sums.detach()

    def masked(self, job: Served, segments: Sequence[int], share: float) -> Thin:
        """Of the same the largest of each sample (see `largest`), which alone are sent."""
        sums, fields = self.sums(job), np.stack([np.diff(cell.offsets) > 0 for cell in job.cells], axis=1)
        job.mask = largest(sums, self._substitution.present(torch.from_numpy(fields)), segments, share)
        return thin(sums.reshape(-1).numpy(), job.mask.chosen.reshape(-1).numpy())

    def backward(self, job: Served, rows: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the moved columns and of the sums that were sent into gradients of this shard's rows.

        Returns the squared norm, [1], of what was computed here, and the gradient of the parameters in partials.
        """
        job.gradients[:, self._columns] = rows.numpy().reshape(job.gradients.shape[0], self._columns.shape[0])
        if not job.leaves:
            return torch.zeros(1), torch.zeros(0)
        if job.mask is not None:
            sums = job.mask.spread(sums)
        parameters = [s.parameter for s in self._substitution.slices]
        grads = torch.autograd.grad(
            job.sums,
            [*job.leaves.values(), *parameters],
            sums.reshape(job.sums.shape),
            allow_unused=True,
            materialize_grads=True,
        )
        for name, gradient in zip(job.leaves, grads[: len(job.leaves)], strict=True):
            spread(gradient.contiguous().numpy(), job.cells, self._begins[name], job.gradients)
        here = np.delete(job.gradients, self._columns, axis=1)
        pieces = torch.cat([torch.zeros(0), *(g.reshape(-1) for g in grads[len(job.leaves) :])])
        return torch.tensor([float(np.vdot(here, here))]), pieces

    def store(self, job: Served, dense: Tensor) -> None:
        """Keep the gradient, whose slice of dense parameters has come, until the pace machine settles it."""
        self._route.push(
            job.number, Gradient(dense, job.pulled.numbers, job.gradients, job.pulled.counts, job.pulled.applied)
        )
