"""The coordinator as an Arrow Flight service: workers anywhere ask it for leases and report to it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import torch

from paceline.cluster.held import Held, Question
from paceline.cluster.lockstep import Lockstep, Result, read_result
from paceline.cluster.place import Place, process_of
from paceline.cluster.reach import GRACE, PATIENCE, Reach
from paceline.cluster.remote import write_lease, write_order
from paceline.cluster.traffic import Traffic
from paceline.errors import ClusterLost, LossError, TrainingError
from paceline.exchange import wire
from paceline.exchange.desk import Superseded
from paceline.exchange.pulse import SILENCE
from paceline.exchange.security import Security
from paceline.runtimes.coordinator import Coordinator, Lease, Stopped
from paceline.runtimes.statistics import Statistics

_FAREWELL = 30.0  # seconds that workers have to leave a finished day


class Office(fl.FlightServerBase):  # type: ignore[misc]
    """Serves one coordinator, day after day.

    do_exchange, command {"worker": name, "ahead": bool, "generation": G} for a seat, which leases and pushes, or
    {"rank": name, "shard": number, "worker": name, "generation": G} for a process that takes part in steps.
    """

    def __init__(self, security: Security, host: str = "127.0.0.1") -> None:
        super().__init__(f"{security.scheme}://{host}:0", **security.server())
        self.generation = 0
        self._security = security
        self._changed = threading.Condition()
        self._day = 0
        self._open = False
        self._coordinator: Coordinator | None = None
        self._statistics: Statistics | None = None
        self._places: dict[str, Place] = {}
        self._seated: set[str] = set()  # workers that have joined to lease and push
        self._lockstep = Lockstep(0)
        self._away: set[str] = set()  # workers that are to leave
        self._reach = Reach(())
        self._late = False  # whether nobody waits for the processes of all shards any more
        self._whole_at = 0.0  # when every shard's process was last there for steps
        self._begun = False  # whether all of them have been there in this generation
        self.traffic: Traffic | None = None
        self.held = Held()
        self.note: Callable[[str], None] = lambda _: None  # what a person should know

    # --- the coordinator's side ---------------------------------------------------------------------------------

    def begin(self, generation: int, shards: int = 0, addresses: Sequence[str] = ()) -> None:
        """Whoever is of an older generation is sent away. shards: with at least two processes, paces in which every
        update needs every gradient go in steps; 0: no steps. addresses: of the shards."""
        with self._changed:
            self.generation, self._open, self._coordinator = generation, False, None
            self._lockstep = Lockstep(shards)
            self._reach = Reach(addresses)
            self._whole_at, self._late, self._begun = time.monotonic(), False, False
            self._seated = set()
            self._changed.notify_all()

    def open_day(self, coordinator: Coordinator, statistics: Statistics) -> None:
        """Workers may come."""
        with self._changed:
            self._coordinator, self._statistics = coordinator, statistics
            self._day += 1
            self._open = True
            self._changed.notify_all()
        self.tend()

    def close_day(self) -> None:
        """Return when every worker has left the day."""
        with self._changed:
            if self._coordinator is None:
                return
            self._open = False
            self._advance()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._seated and not self._lockstep.stepping, _FAREWELL)
            hung = [p for p in self._places.values() if p.worker in {*self._seated, *self._lockstep.stepping}]
        for place in hung:
            self._leave(place)

    def workers(self) -> list[str]:
        """The workers that are connected."""
        with self._changed:
            return sorted(place.worker for place in self._places.values() if place.member is None)

    def staff(self, away: set[str]) -> tuple[list[str], list[str]]:
        """The workers in `away` are to leave: they finish what they compute, and get nothing more. Returns (workers
        that have all their connections, those of `away` that still have one)."""
        with self._changed:
            self._away = away
            self._lockstep.dismiss(away, self._coordinator)
            self._changed.notify_all()
            places = [place for place in self._places.values() if place.generation == self.generation]
            here = {place.process for place in places if place.member is None and not place.ahead}
            if self._lockstep.shards:
                here &= {place.process for place in places if place.member is not None}
            return sorted(here - away), sorted(away & {place.process for place in places})

    def wait_for_workers(self, count: int, seconds: float) -> bool:
        """Whether so many are connected, or cannot reach all shards, after at most `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._seats() + self._reach.idle() >= count, seconds)

    def _seats(self) -> int:
        return sum(place.member is None and not place.ahead for place in self._places.values())

    def tend(self) -> None:
        """What has to be looked after now and then: connections that broke while somebody waited, the silent, and those
        who wait for leases under a pace that goes in steps."""
        silent = time.monotonic() - SILENCE
        with self._changed:
            places = list(self._places.values())
            gone = [p for p in places if p.context.is_cancelled() or p.heard < silent]
            coordinator = self._coordinator
            if coordinator is not None:
                everybody = self._collective(coordinator)
                for worker in [w for w in self._seated if everybody or process_of(w) in self._away]:
                    if coordinator.leave_waiting(worker):  # who has a lease finishes it
                        self._unseat(coordinator, worker)
            with contextlib.suppress(Stopped):  # it has failed: `run_day` is about to see why
                self._advance()
            news = [said for said in (self._reach.news(), self._lockstep.news()) if said is not None]
        for place in gone:
            self._leave(place)
        for said in news:
            self.note(said)

    def stuck(self, at_once: bool = False) -> ClusterLost | None:
        """Why nobody can work, if that has been so for a while, or is so now."""
        with self._changed:
            return self._reach.stuck(0.0 if at_once else GRACE)

    def _collective(self, coordinator: Coordinator) -> bool:
        """Whether it is time for steps that all take part in."""
        lockstep = self._lockstep
        # At first those who come early wait for the others: who computes what is to depend on nobody's start.
        several = len(lockstep.members) > 1 or (lockstep.shards > 1 and not self._begun)
        wanted = lockstep.shards > 0 and coordinator.machine.pace.collective and several
        if not wanted or lockstep.whole:
            self._whole_at, self._late = time.monotonic(), False
            self._begun |= wanted
        elif time.monotonic() - self._whole_at > PATIENCE and not self._late:
            self._late = True
            here = {m.shard for m in lockstep.members.values()}
            away = ", ".join(f"shard {k}" for k in range(lockstep.shards) if k not in here)
            self.note(f"the process of {away} does not come to steps of all: workers push and pull meanwhile")
        return wanted and not self._late and not lockstep.over and not self._reach.apart()

    def _advance(self) -> None:
        coordinator = self._coordinator
        if coordinator is None or self._seated or not self._lockstep.members:
            return

        def wanted() -> bool:  # asked once the last step is counted: an autopilot may switch over its gradients
            return self._open and self._collective(coordinator)

        if self._lockstep.advance(coordinator, wanted, self.traffic, self._away):
            self._changed.notify_all()
        elif not self._lockstep.stepping:
            self._changed.notify_all()  # seats may be waiting for that

    def poke(self) -> None:
        """There is more data: perhaps a step was waiting for it."""
        with self._changed:
            coordinator = self._coordinator
            if coordinator is None or not self._lockstep.shards:
                return
            try:
                self._advance()
            except Stopped:
                pass
            except Exception as error:  # of the data, or of what is done when it is read: not the reading thread's own
                coordinator.fail(error)

    def _unseat(self, coordinator: Coordinator, worker: str) -> None:
        self._seated.discard(worker)
        if coordinator.is_here(worker):
            coordinator.leave(worker)
        self._changed.notify_all()

    # --- the workers' side --------------------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """`alive`, with {"process": name, "generation": G, "works": whether it has a worker, "places": [names of its
        seats and rank], "unreachable": [addresses of shards]}: they still are. Gives {"lost": group}: steps in groups
        up to that number will not end."""
        if action.type != "alive":
            raise fl.FlightServerError(f"no action {action.type!r}; there is alive")
        asked = json.loads(action.body.to_pybytes())
        self._security.check(asked)
        with self._changed:
            ours = asked["generation"] == self.generation
            for name in asked["places"] if ours else ():
                if name in self._places:
                    self._places[name].heard = time.monotonic()
            if ours and self._reach.hear(asked["process"], asked["works"], asked["unreachable"]):
                self._changed.notify_all()
            lost = self._lockstep.lost if ours else 0
        yield fl.Result(json.dumps({"lost": lost}).encode())

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        opened = json.loads(descriptor.command)
        self._security.check(opened)
        place = Place(opened, context)
        with self._changed:
            if place.generation != self.generation or place.process in self._away:
                raise fl.FlightServerError("superseded")
            before = self._places.get(place.name)
        if before is not None:
            self._leave(before)
        with self._changed:
            twin = self._places.get(place.name)  # that came at the same moment
            if twin is not None and twin.process:
                self.held.left(twin.process, twin.epoch)
            self._places[place.name] = place
            if place.process:
                place.epoch = self.held.came(place.process)
            if place.member is not None:
                self._lockstep.members[place.member.name] = place.member
            self._changed.notify_all()
        try:  # to the end: the context of a place is gone, and may not be asked, once this returns
            writer.begin(wire.SCHEMA)
            while True:
                try:
                    chunk = reader.read_chunk()
                except (StopIteration, fl.FlightError, pa.ArrowException):
                    return
                head = wire.read_header(chunk)
                try:
                    told, arrays = self._answer(place, head, chunk.data)
                except (Stopped, Superseded):
                    told, arrays = {"superseded": "the job has stopped or goes on without this worker"}, []
                writer.write_with_metadata(wire.pack(arrays), json.dumps(told).encode())
        except (fl.FlightError, pa.ArrowException):
            return  # it has gone
        finally:
            self._leave(place)

    def _answer(self, place: Place, head: dict[str, Any], data: Any) -> tuple[dict[str, Any], list[Any]]:
        match head["op"]:
            case "lease":
                return self._lease(place)
            case "step":
                return self._step(place, read_result(head, torch.from_numpy(wire.unpack(data, 0, np.float32).copy())))
            case "held":
                with self._changed:
                    self._check(place)
                state = torch.from_numpy(wire.unpack(data, 0, np.float32).copy())
                self.held.answered(place.process, head["number"], state)
                return self._lease(place) if place.member is None else self._step(place, None)
        with self._changed:
            self._check(place)
            coordinator = self._coordinator
            if coordinator is None:
                raise Superseded
        if head["op"] == "fail":
            error = LossError if head["kind"] == "LossError" else TrainingError
            made = error(head["text"])
            if isinstance(made, LossError):
                made.file = head["file"]
            coordinator.fail(made)
            raise Stopped
        if self.traffic is not None:
            self.traffic.add(int(place.process.removeprefix("worker-")), head["carried"])
            self.traffic.busy[place.process] = head["busy"]
        lease = Lease(head["gradient"], head["token"], head["version"], _NO_BATCH, head["attempt"])
        statistics = torch.from_numpy(wire.unpack(data, 0, np.float32).copy())
        coordinator.push(place.worker, lease, head["loss"], head["norm"], statistics, head["seconds"])
        return {}, []

    def _check(self, place: Place) -> None:
        if place.generation != self.generation or self._places.get(place.name) is not place:
            raise Superseded

    def _step(self, place: Place, result: Result | None) -> tuple[dict[str, Any], list[Any]]:
        member = place.member
        assert member is not None
        with self._changed:
            self._check(place)
            if result is not None:
                self._lockstep.bring(member, result)
                self._advance()
            while (asked := self.held.question(place.process)) is None and member.order is None:
                if self._lockstep.members.get(member.name) is not member:
                    raise Superseded  # it was to leave
                self._changed.wait(0.5)
                self._check(place)
            if asked is not None:
                return asked
            assert member.order is not None
            order, member.order = member.order, None
            statistics = self._statistics
            assert statistics is not None
            own = statistics.of(member.worker) if member.worker is not None else statistics.pooled
        told, whole = write_order(order, own)
        return told, [whole]

    def _lease(self, place: Place) -> tuple[dict[str, Any], list[Any]]:
        while True:
            waited = self._await_day(place)
            if isinstance(waited[0], dict):
                return waited
            coordinator, statistics = waited
            try:
                lease, place.lease = place.lease or coordinator.lease(place.worker), None
            except Stopped:
                with self._changed:
                    if coordinator.failure is not None or place.worker in self._seated:
                        raise
                    continue  # the pace goes in steps now
            if lease is not None:
                asked = self.held.question(place.process)
                if asked is not None:
                    place.lease = lease
                    return asked
                told, whole = write_lease(lease, statistics.of(place.worker))
                return told, [whole]
            with self._changed:
                place.day = self._day
                self._unseat(coordinator, place.worker)

    def _await_day(self, place: Place) -> tuple[Coordinator, Statistics] | Question:
        """Wait until there is work for this seat, and join; or until it is asked something."""
        with self._changed:
            while True:
                self._check(place)
                asked = self.held.question(place.process)
                if asked is not None:
                    return asked
                if place.process in self._away:
                    raise Superseded
                coordinator, statistics = self._coordinator, self._statistics
                if place.day < self._day and coordinator is not None and statistics is not None:
                    if coordinator.failure is not None:
                        raise Superseded
                    seated = place.worker in self._seated
                    if self._collective(coordinator):
                        if seated:
                            self._unseat(coordinator, place.worker)
                            self._advance()
                    elif seated:  # also of a day that is over: it has to be told
                        return coordinator, statistics
                    elif (
                        self._open
                        and not self._lockstep.stepping
                        and not (place.ahead and coordinator.machine.pace.round is not None)
                    ):
                        coordinator.join(place.worker)
                        self._seated.add(place.worker)
                        place.lease = None  # one that was kept from before has been issued again
                        return coordinator, statistics
                self._changed.wait(0.5)

    def _leave(self, place: Place) -> None:
        with self._changed:
            if self._places.get(place.name) is not place:
                return
            del self._places[place.name]
            if place.process:
                self.held.left(place.process, place.epoch)
            coordinator, statistics = self._coordinator, self._statistics
            if place.member is not None:
                self._lockstep.leave(place.member, coordinator)
                self._advance()
            elif coordinator is not None and place.worker in self._seated:
                self._unseat(coordinator, place.worker)
            if statistics is not None and place.member is None:
                statistics.forget(place.worker)
            if self.traffic is not None and place.process in self._away:
                self.traffic.forget(place.process)
            self._changed.notify_all()


_NO_BATCH: Any = None  # a report does not bring its batch back
