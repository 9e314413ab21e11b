"""Steps in which every process takes part: who computes what, when all of them are ready for it.

A step's gradients count once all ranks have come back from it: then every shard holds its part of each. If a rank is
lost in a step, none of its gradients counts, their leases are issued again, and those who are left form a new group.
Who joins or leaves on request does so between two steps: the one before counts, and the next has a new group. After
TRIES steps in a row that broke there are no more: all paces go by push and pull.
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from paceline.cluster.traffic import Traffic
from paceline.exchange.positions import load_of
from paceline.runtimes.coordinator import Coordinator, Lease

TRIES = 3


@dataclass(slots=True)
class Result:
    """What a rank brings back from a step. loss, norm, statistics, seconds (of computing): of its gradient, if it had
    a lease; sent, predicted: bytes by kind; why: it broke."""

    broken: bool
    loss: float = 0.0
    norm: float = 0.0
    statistics: Tensor | None = None
    seconds: float = 0.0
    sent: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    why: str = ""


@dataclass(slots=True)
class Order:
    """What a rank is to do: its lease, if any, on version `version`, in group number `group` as rank `rank` of the
    processes `names`, whose workers are `workers`; load: samples, positions, distinct ids and bits a position of a
    usual batch; undo: the step before this one did not count."""

    group: int
    rank: int
    names: tuple[str, ...]
    workers: tuple[int, ...]
    version: int
    load: tuple[float, float, float, float]
    lease: Lease | None
    undo: bool = False


@dataclass(slots=True)
class Member:
    """A process. shard: its number, or None; worker: its name, or None."""

    name: str
    shard: int | None
    worker: str | None
    result: Result | None = None  # with which it waits for the next step
    order: Order | None = None
    undo: bool = False  # its last step did not count


class Lockstep:
    """Not thread-safe: the office holds its lock. shards: how many there are, all of which are needed."""

    def __init__(self, shards: int) -> None:
        self.members: dict[str, Member] = {}
        self.stepping: set[str] = set()  # workers that have joined the coordinator
        self.shards = shards
        self.lost = 0  # groups up to this number will not finish a step any more
        self._broke = 0  # steps in a row
        self._why, self._said = "", False  # of the last of them
        self._group, self._names = 0, tuple[str, ...]()
        self._stepped = tuple[str, ...]()  # processes that the step under way was ordered of
        self._out: dict[str, Lease] = {}  # of the step that is under way
        self._broken = False
        self._load = (0.0, 0.0, 0.0, 0.0)

    def leave(self, member: Member, coordinator: Coordinator | None) -> None:
        """A process is gone; the step that it was in does not count."""
        if self.members.get(member.name) is member:
            del self.members[member.name]
            self._break(f"{member.name} is gone")
            if coordinator is not None and member.worker in self.stepping:
                self._away(coordinator, member.worker or "")

    def dismiss(self, workers: Set[str], coordinator: Coordinator | None) -> None:
        """These workers' processes have no part in further steps; in the one that is under way they still have."""
        if self._out:
            return  # `advance` sees to it when all have come back
        for member in [m for m in self.members.values() if m.worker in workers and m.shard is None]:
            del self.members[member.name]
            self._names = ()  # a process of that name that comes later is another one
            if coordinator is not None and member.worker in self.stepping:
                self._away(coordinator, member.worker or "")

    def bring(self, member: Member, result: Result) -> None:
        """A process has come back from a step, or for its first."""
        member.result = result
        if result.broken:
            self._break(f"{member.name}: {result.why}")

    def advance(
        self,
        coordinator: Coordinator,
        collective: Callable[[], bool],
        traffic: Traffic | None,
        away: Set[str] = frozenset(),
    ) -> bool:
        """Begin the next step if everybody is ready for it. Returns whether there are new orders.

        collective: whether the pace wants steps; else, and when the day is over, all workers leave. away: workers that
        are to leave.
        """
        members = self._in_order()
        if any(m.result is None for m in members):
            return False
        if not self.whole:
            if self.stepping and not collective():  # nobody waits for it any more
                self._count(coordinator, members, traffic)
                for worker in list(self.stepping):
                    self._away(coordinator, worker)
            return False
        self._count(coordinator, members, traffic)
        self.dismiss(away, coordinator)
        members = self._in_order()
        workers = [m.worker for m in members if m.worker is not None]
        if workers and coordinator.failure is None and not coordinator.can_read(len(workers)):
            return False  # nobody waits for the data here: others have to be answered meanwhile
        if collective() and not self.over and workers and coordinator.failure is None:
            for worker in workers:
                if worker not in self.stepping:
                    coordinator.join(worker)
                    self.stepping.add(worker)
                if coordinator.is_idle(worker):  # a push before may have let it go on already
                    coordinator.request(worker)
            while coordinator.read_next():
                pass
            self._out = dict(coordinator.grants())
        if not self._out:
            for worker in list(self.stepping):
                self._away(coordinator, worker)
            return False
        self._order(coordinator, members)
        return True

    @property
    def whole(self) -> bool:
        """Whether the processes of all shards are there."""
        return sorted(m.shard for m in self.members.values() if m.shard is not None) == list(range(self.shards))

    def _in_order(self) -> list[Member]:
        return sorted(self.members.values(), key=lambda m: (m.shard is None, m.shard, m.name))

    def _count(self, coordinator: Coordinator, members: list[Member], traffic: Traffic | None) -> None:
        """The gradients of the step that all have come back from."""
        results = {m.worker: m.result for m in members if m.worker is not None and m.result is not None}
        broken = self._broken
        if self._out:
            self._broke = self._broke + 1 if broken else 0
        for worker, lease in sorted(self._out.items(), key=lambda item: item[1].gradient):
            result = results.get(worker)
            if broken or result is None or result.statistics is None:
                if worker in self.stepping:
                    self._away(coordinator, worker)
                continue
            coordinator.push(worker, lease, result.loss, result.norm, result.statistics, result.seconds)
        if broken:
            self._names = ()  # what is left forms a new group
        elif traffic is not None:
            for member in members:
                if member.result is not None:
                    traffic.add_step(member.result.sent, member.result.predicted)
        for member in members:
            member.undo |= broken and member.name in self._stepped
            member.result = Result(broken=False)  # counted; it goes on waiting
        self._stepped = ()
        self._out, self._broken = {}, False

    @property
    def over(self) -> bool:
        """Whether too many steps in a row broke."""
        return self._broke >= TRIES

    def news(self) -> str | None:
        """That it is over, once."""
        if not self.over or self._said:
            return None
        self._said = True
        return (
            f"{TRIES} steps in a row broke in which all processes take part ({self._why}): they push and pull until the"
            " run goes on from a snapshot. Where machines block each other's ports, set cluster.exchange=push_pull"
        )

    def _break(self, why: str) -> None:
        """The step that is under way, if any, does not count, and nobody need wait for its end."""
        if not self._broken:
            self._why = why
        self._broken, self.lost = True, self._group

    def _order(self, coordinator: Coordinator, members: list[Member]) -> None:
        names = tuple(m.name for m in members)
        if names != self._names:
            self._names, self._group = names, self._group + 1
            batch = next(iter(self._out.values())).batch
            load = load_of(batch, self.shards)
            self._load = (float(load.samples), float(load.positions), float(load.distinct), load.bits or 0.0)
        ranks = tuple(rank for rank, m in enumerate(members) if m.worker is not None)
        version = coordinator.machine.version
        for rank, member in enumerate(members):
            lease = None if member.worker is None else self._out.get(member.worker)
            member.order = Order(self._group, rank, names, ranks, version, self._load, lease, member.undo)
            member.result, member.undo = None, False
        self._stepped = names

    def _away(self, coordinator: Coordinator, worker: str) -> None:
        self.stepping.discard(worker)
        if coordinator.is_here(worker):
            coordinator.leave(worker)


def read_result(head: dict[str, Any], statistics: Tensor) -> Result:
    """A rank's message, as a result."""
    told = head["result"]
    if told is None:
        return Result(head["broken"], sent=head["sent"], predicted=head["predicted"], why=head["why"])
    own = (told["loss"], told["norm"], statistics, told["seconds"])
    return Result(head["broken"], *own, head["sent"], head["predicted"])
