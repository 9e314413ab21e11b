"""A step in which every rank takes part: shards and workers exchange rows, or partial sums in their place.

What it leaves behind is what push and pull leave: each shard's route holds, by gradient number, the gradient of its own
rows and of its slice of the dense parameters, until the pace machine settles it. So every exchange updates by the same
code. Source: DES (Rong et al., arXiv 1909.04823), variant with reduce-scatter, reconstructed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import final

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Ints
from paceline.exchange.cost import Exchange, Load, Plan, Roles, RowPart, Sent, Shape, choose, segments, sent
from paceline.exchange.dictionary import CAPACITY
from paceline.exchange.direct import DirectRoute
from paceline.exchange.group import Group
from paceline.exchange.masking import Mask, kept_numbers
from paceline.exchange.substitution import Substitution
from paceline.exchange.thin import sent_of, thicken, thin
from paceline.models.base import Model
from paceline.models.readers import readers_of
from paceline.params.dense import flatten, slice_sizes
from paceline.params.feedback import Thinning, kept_of_slices
from paceline.runtimes.asking import Asked, Asker, Computed
from paceline.runtimes.compute import Layout, Replica
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.local import check_finite
from paceline.runtimes.serving import Served, Server

Pieces = dict[str, dict[int, Tensor]]
Sizes = dict[str, dict[int, int]]
Came = Mapping[str, Mapping[int, Tensor]]


def make_plan(
    model: Model,
    layout: Layout,
    dense: int,
    roles: Roles,
    load: Load,
    exchange: Exchange = "auto",
    thinning: Thinning | None = None,
    sums: float = 1.0,
) -> Plan:
    """How to exchange the rows of `model`. dense: number of dense inputs; load: a worker's usual batch; thinning: of
    the dense gradients; sums: share of a sample's partial sums that is sent.

    Ranks must share one plan: make it in one place, or in each from the same numbers.
    """
    readers = readers_of(model, layout.singles + layout.bags, dense)
    parts = tuple(RowPart(part.name, part.width, readers[part.name]) for part in layout.parts)
    sizes = tuple(slice_sizes(model, len(roles.shards)))
    kept = None if thinning is None else tuple(kept_of_slices(model, len(roles.shards), thinning))
    return choose(Shape(parts, roles, layout.singles, layout.bags, sizes, kept=kept, sums=sums), exchange, load)


@final
class Collective:
    """One rank's part. Every rank of the group makes one from the same plan and calls `step` equally often.

    model: the replica's where the rank has one (its operators compute the partial sums); route: of the rank's shard,
    if it holds one, whose dense parameters are the shard's of `params.dense.slices`; replica: its worker's, if any;
    capacity: of its lists of ids, which both sides keep while the group lasts.
    `sent`, `predicted`: bytes of the last step.
    """

    def __init__(
        self,
        group: Group,
        plan: Plan,
        model: Model,
        layout: Layout,
        route: DirectRoute | None,
        replica: Replica | None,
        capacity: int = CAPACITY,
    ) -> None:
        self._group, self._plan = group, plan
        self._shards = plan.shape.roles.shards
        self._flat = flatten(model) if replica is None else replica.flat
        self._feedback = None if replica is None else replica.feedback
        self._filtered: int | None = None  # gradients that had been filtered after the last step, if that did
        self._masks: dict[int, Mask] = {}  # of what the shards sent of their sums
        self._substitution = Substitution(model, plan.shape, plan.modes)
        moved = [(p, begin) for p, begin in zip(layout.parts, layout.begins(), strict=True) if _moves(plan, p.name)]
        columns: Ints = np.concatenate([np.zeros(0, np.int64), *(np.arange(b, b + p.width) for p, b in moved)])
        narrow = Layout(tuple(p for p, _ in moved), layout.singles, layout.bags)
        self._columns = columns.shape[0]
        self._segments = segments(plan.shape, plan.modes)
        self._masks_sums = kept_numbers(plan.shape.sums, self._segments) is not None
        self._server = None if route is None else Server(route, self._substitution, layout, columns)
        self._asker = None
        if replica is not None:
            there = Substitution(replica.computes, plan.shape, plan.modes, replica.device)
            self._asker = Asker(replica, there, narrow, self._shards, plan.load.bits, capacity)
        stops = np.cumsum(plan.shape.dense).tolist()
        sizes = zip(self._shards, stops, plan.shape.dense, strict=True)
        self._slices = {rank: slice(stop - size, stop) for rank, stop, size in sizes}
        self.sent = self.predicted = Sent({}, {})

    def step(self, lease: Lease | None) -> tuple[float, float] | None:
        """Compute the leased batch (None: take part with no sample) together with all other ranks.

        Returns its mean log loss and the norm of its gradient, over all shards. Raises LossError, after the exchange,
        if they are not finite, and TrainingError if another rank is lost.
        """
        ids, values, self._filtered = self._group.ids.copy(), self._group.values.copy(), None
        asked = None if lease is None or self._asker is None else self._asker.ask(lease.batch, lease.gradient)
        messages = {} if asked is None or self._asker is None else self._asker.messages(asked)
        requests = self._group.messages(messages)
        served = {} if self._server is None else self._server.pull(requests)
        computed = self._forward(asked, served)
        squares = self._backward(asked, served, computed, 0 if lease is None else lease.version)
        self._count(asked, served, Sent(self._group.ids - ids, self._group.values - values))
        if lease is None or computed is None:
            return None
        norm = math.sqrt(squares) if math.isfinite(squares) else math.inf
        check_finite(lease, computed.loss, norm)
        return computed.loss, norm

    def undo(self) -> None:
        """The last step does not count: what was held back of its gradient is as before, unless others were filtered
        since (by push and pull)."""
        if self._feedback is not None and self._filtered == self._feedback.steps:
            self._feedback.undo()
        self._filtered = None

    @property
    def _thins(self) -> bool:
        """Whether dense gradients are mostly zeros, and sent as such."""
        return self._plan.shape.kept is not None

    @property
    def _projects(self) -> bool:
        """Whether shards need dense parameters for their partial sums, and have gradients of them."""
        return bool(self._substitution.slices)

    def _forward(self, asked: Asked | None, served: Mapping[int, Served]) -> Computed | None:
        """Rows, sums and dense parameters from the shards to the workers, who compute."""
        server, asker = self._server, self._asker
        dense = torch.zeros(0) if server is None or not served else server.dense()
        if self._projects:
            everywhere = {*served, *self._shards} if served else set()
            self._take_dense(self._group.swap(*self._dense_down(dense, everywhere, asked is not None or bool(served))))
        down: Pieces = {"rows": {}, "sums": {}}
        expected: Sizes = {"rows": {}, "sums": {}}
        if server is not None:
            down["rows"] = {rank: server.rows(job) for rank, job in served.items()}
            if not self._masks_sums:
                down["sums"] = {rank: server.sums(job) for rank, job in served.items()}
        if asked is not None:
            counts = zip(self._shards, asked.counts(), strict=True)
            expected["rows"] = {rank: count * self._columns for rank, count in counts}
            if not self._masks_sums:
                expected["sums"] = dict.fromkeys(self._shards, asked.batch.samples * self._substitution.width)
        if not self._projects:
            pieces, sizes = self._dense_down(dense, {*served}, asked is not None)
            down, expected = down | pieces, expected | sizes
        came = self._group.swap(down, expected)
        if not self._projects:
            self._take_dense(came)
        if self._masks_sums:
            came["sums"] = self._masked_down(asked, served)
        return None if asked is None or asker is None else asker.compute(asked, came["rows"], came["sums"])

    def _backward(
        self, asked: Asked | None, served: Mapping[int, Served], computed: Computed | None, version: int
    ) -> float:
        """Gradients from the workers to the shards, which keep them. version: that the own one was computed on. Returns
        its squared norm, of all of it."""
        server, asker = self._server, self._asker
        up: Pieces = {"rows": {}, "sums": {}}
        if asked is not None and computed is not None and asker is not None:
            up["rows"] = asker.row_gradients(asked, computed)
            masks = self._masks
            up["sums"] = {r: masks[r].values(computed.sums) if masks else computed.sums for r in self._shards}
        expected = {
            "rows": {rank: job.pulled.numbers.shape[0] * self._columns for rank, job in served.items()},
            "sums": {
                rank: int(job.load.samples) * self._substitution.width if job.mask is None else job.mask.count
                for rank, job in served.items()
            },
        }
        gradient = torch.zeros(0) if computed is None else computed.dense
        at_once = not self._projects and not self._thins
        if at_once:
            pieces, sizes = self._dense_up(gradient, asked, served)
            up, expected = up | pieces, expected | sizes
        came: dict[str, dict[int, Tensor]] = self._group.swap(up, expected)
        local: Pieces = {"norms": {}, "pieces": {}}
        if server is not None:
            for rank, job in served.items():
                norm, piece = server.backward(job, came["rows"][rank], came["sums"][rank])
                local["norms"][rank], local["pieces"][rank] = norm, piece
        squares = 0.0
        if self._substitution.parts:
            squares = self._gather(local, asked, gradient)
        if self._thins:
            came["dense"] = self._thin_up(gradient, asked, served, version)
        elif not at_once:
            came |= self._group.swap(*self._dense_up(gradient, asked, served))
        if server is not None:
            for rank, job in served.items():
                server.store(job, came["dense"][rank])
        if computed is None:
            return 0.0
        return float(gradient.dot(gradient)) + float(np.vdot(computed.rows, computed.rows)) + squares

    def _masked_down(self, asked: Asked | None, served: Mapping[int, Served]) -> dict[int, Tensor]:
        """The largest of each sample's sums to the workers; all shards' for the own batch, [B, K]."""
        to, server = {}, self._server
        if server is not None:
            to = {rank: server.masked(job, self._segments, self._plan.shape.sums) for rank, job in served.items()}
        came = self._group.thinned("sums", to)
        if asked is None:
            return {}
        shape = asked.batch.samples, self._substitution.width
        size = shape[0] * shape[1]
        self._masks = {rank: Mask(torch.from_numpy(sent_of(came[rank], size)).view(shape)) for rank in self._shards}
        return {rank: torch.from_numpy(thicken(came[rank], size)).view(shape) for rank in self._shards}

    def _gather(self, local: Pieces, asked: Asked | None, gradient: Tensor) -> float:
        """What the shards computed of the own gradient: adds that of the dense parameters in partials to `gradient`, in
        the order of the shards, and returns the squared norm of their rows."""
        each = sum(s.parameter.numel() for s in self._substitution.slices)
        shards = () if asked is None else self._shards
        came = self._group.swap(local, {"norms": dict.fromkeys(shards, 1), "pieces": dict.fromkeys(shards, each)})
        for rank in shards:
            sizes = [s.parameter.numel() for s in self._substitution.slices]
            for s, piece in zip(self._substitution.slices, torch.split(came["pieces"][rank], sizes), strict=True):
                gradient[s.start : s.stop] += piece
        return sum(float(came["norms"][rank]) for rank in shards)

    def _dense_down(self, own: Tensor, to: Iterable[int], taking: bool) -> tuple[Pieces, Sizes]:
        """The own slice of the dense parameters to `to`; all slices from the shards, if `taking`."""
        sizes = {rank: s.stop - s.start for rank, s in self._slices.items()} if taking else {}
        return {"dense": dict.fromkeys(to, own)}, {"dense": sizes}

    def _take_dense(self, came: Came) -> None:
        with torch.no_grad():
            for rank, values in came["dense"].items():
                self._flat[self._slices[rank]] = values

    def _dense_up(self, gradient: Tensor, asked: Asked | None, served: Mapping[int, Served]) -> tuple[Pieces, Sizes]:
        """The shards' slices of the own gradient, and the own slice of everybody's."""
        to = {} if asked is None else {rank: gradient[s] for rank, s in self._slices.items()}
        mine = self._slices.get(self._group.rank, slice(0, 0))
        return {"dense": to}, {"dense": dict.fromkeys(served, mine.stop - mine.start)}

    def _thin_up(
        self, gradient: Tensor, asked: Asked | None, served: Mapping[int, Served], version: int
    ) -> dict[int, Tensor]:
        """What leaves of the own gradient to the shards; everybody's for the own slice, zero where nothing left."""
        to = {}
        if asked is not None:
            if self._feedback is not None:
                gradient = self._feedback.filter(gradient, version)
                self._filtered = self._feedback.steps
            to = {rank: thin(gradient[s].numpy()) for rank, s in self._slices.items()}
        mine = self._slices.get(self._group.rank, slice(0, 0))
        came = self._group.thinned("dense_gradients", to)
        return {rank: torch.from_numpy(thicken(came[rank], mine.stop - mine.start)) for rank in served}

    def _count(self, asked: Asked | None, served: Mapping[int, Served], sent_now: Sent) -> None:
        loads = {rank: job.load for rank, job in served.items()}
        if asked is not None:
            loads[self._group.rank] = asked.load
        self.sent = sent_now
        self.predicted = sent(self._plan.shape, self._plan.modes, loads, self._group.rank)


def _moves(plan: Plan, part: str) -> bool:
    return plan.modes[part] == "rows"
