"""A process's part in steps that all take part in: it forms groups with the others and runs the exchange."""

from __future__ import annotations

import contextlib
import hashlib
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np

from paceline.cluster.lockstep import Order, Result
from paceline.cluster.remote import RemoteRank
from paceline.compressconfig import CompressConfig
from paceline.errors import LossError, TrainingError
from paceline.exchange.cost import Load, Plan, Roles, Sent
from paceline.exchange.desk import Desk
from paceline.exchange.group import Group, connect
from paceline.runtimes.collective import Collective, make_plan
from paceline.runtimes.compute import Replica
from paceline.runtimes.turns import Turn

TIMEOUT = 60.0  # seconds that a step waits for the slowest


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where groups form: a torch store at host:port; address: this process's own; name: of the generation."""

    host: str
    port: int
    address: str
    name: str


def _agree(group: Group, plan: Plan) -> None:
    """Raises RuntimeError if another rank made another plan: they would wait for bytes that nobody sends."""
    own = hashlib.sha256(repr(plan).encode()).digest()
    mine = np.frombuffer(own, np.uint8)
    for rank, theirs in group.messages({"plan": dict.fromkeys(range(group.size), mine)}).items():
        if theirs.tobytes() != own:
            raise RuntimeError(
                f"rank {rank} of {group.size} would exchange rows otherwise than rank {group.rank}: do all machines"
                " have the same paceline, torch and model? cluster.exchange=push_pull does without such a plan"
            )


def _by_kind(found: Sent) -> dict[str, float]:
    """With what told how long messages are counted as of the ids."""
    positions = found.ids.get("positions", 0.0)
    return {**found.values, "ids": found.id_bytes - positions, **({"positions": positions} if positions else {})}


class Stepper:
    """desk: of the process's shard, if it has one; replica: its model, which computes if the process works; dense:
    number of dense inputs; own_gpu: whether no other process uses the replica's, so that collectives may; compress:
    what is sent."""

    def __init__(
        self,
        meeting: Meeting,
        desk: Desk | None,
        replica: Replica,
        works: bool,
        shards: int,
        dense: int,
        exchange: Literal["auto", "rows", "substitute"],
        generation: int,
        turn: Turn,
        own_gpu: bool = False,
        compress: CompressConfig | None = None,
    ) -> None:
        self._meeting, self._desk, self._replica, self._works = meeting, desk, replica, works
        self._shards, self._dense, self._exchange, self.generation = shards, dense, exchange, generation
        self._own_gpu, self._compress = own_gpu, compress
        self._turn = turn  # held while a gradient of a step is computed
        self._group: Group | None = None
        self._number = -1
        self._engine: Collective | None = None
        self._lost = 0

    def give_up(self, number: int | None = None) -> None:
        """Groups up to `number` (None: the present one) will finish no step any more, whatever they wait for. May be
        called from any thread."""
        self._lost = max(self._lost, self._number if number is None else number)

    def run(self, office: RemoteRank) -> None:
        """Step after step, until the office has no order for this process any more (Stopped)."""
        result = Result(broken=False)
        try:
            while True:
                order, statistics = office.step(result)
                if order.undo and self._engine is not None:
                    self._engine.undo()
                if self._works:
                    self._replica.statistics.copy_(statistics)
                try:
                    result = self._step(order)
                except LossError:
                    raise
                except TrainingError as error:  # somebody was lost; the office knows, or will
                    if self._engine is not None:
                        self._engine.undo()
                    self._leave_group()
                    result = Result(broken=True, why=str(error).split("\n")[0])
        finally:
            self._leave_group()

    def _step(self, order: Order) -> Result:
        engine = self._engine if order.group == self._number and self._engine is not None else self._join(order)
        if self._desk is not None:
            self._desk.await_version(self.generation, order.version)
        self._replica.turn = self._turn
        try:
            found = engine.step(None if order.lease is None else self._replica.taught(order.lease))
        finally:
            self._replica.turn = nullcontext()  # seats that lease and push have turns of their own
        sent, predicted = _by_kind(engine.sent), _by_kind(engine.predicted)
        if found is None:
            return Result(False, sent=sent, predicted=predicted)
        loss, norm = found
        return Result(False, loss, norm, self._replica.statistics.clone(), self._turn.seconds, sent, predicted)

    def _join(self, order: Order) -> Collective:
        """Form the order's group with the others."""
        self._leave_group()
        replica, meeting, self._number = self._replica, self._meeting, order.group
        name, size = f"{meeting.name}-{order.group}", len(order.names)
        device = replica.device
        gpu = device if self._own_gpu and device.type == "cuda" else None
        group = connect(meeting.host, meeting.port, name, order.rank, size, TIMEOUT, meeting.address, gpu)
        group.lost = lambda: order.group <= self._lost
        roles = Roles(tuple(range(self._shards)), order.workers)
        compress = (None, 1.0) if self._compress is None else (self._compress.thinning, self._compress.sums)
        samples, positions, distinct, bits = order.load
        load = Load(samples, positions, distinct, bits=bits)
        plan = make_plan(replica.model, replica.layout, self._dense, roles, load, self._exchange, *compress)
        self._group = group
        _agree(group, plan)
        home = None if self._desk is None else self._desk.home
        worker = replica if self._works else None
        self._engine = Collective(group, plan, replica.model, replica.layout, home, worker)
        return self._engine

    def _leave_group(self) -> None:
        if self._group is not None:
            with contextlib.suppress(TrainingError):
                self._group.close()
        self._group, self._engine, self._number = None, None, -1
