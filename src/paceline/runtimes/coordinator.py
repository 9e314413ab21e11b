"""The coordinator of one process: the pace machine behind a lock, the batches that are out, the trace.

It asks the machine and has the answers carried out, in their order, before anybody else is answered. So a worker that
is granted a batch of version k sees parameters of version k or later, and a snapshot sees whole updates only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from paceline import pace as p
from paceline.batch import Batch, Span
from paceline.exchange.direct import Ticket
from paceline.runtimes.statistics import Statistics
from paceline.telemetry import Telemetry


class Settler(Protocol):
    """Carries out what the machine says of gradients (a route)."""

    def apply(self, command: p.Apply) -> float | None:
        """Returns the norm of the gradient that was applied; None if it will be known later."""

    def drop(self, number: int) -> None: ...


class Stopped(Exception):
    """Another worker failed or the run was interrupted: leave quietly."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A batch to compute; gradient is its number; version: of the parameters as they were when it was granted; attempt:
    a number of its own for each lease; teachers: snapshots of other groups whose predictions are learned from."""

    gradient: int
    token: int
    version: int
    batch: Batch
    attempt: int = 0
    teachers: tuple[str, ...] = ()

    @property
    def ticket(self) -> Ticket:
        return Ticket(self.gradient, self.attempt, self.version)


@dataclass(slots=True)
class Progress:
    """What a progress bar shows, and what is counted beside the machine's account."""

    loss: float = float("nan")
    staleness: float = 0.0
    rows_skipped: int = 0
    sound: int = -1  # the newest version that a finite loss was computed on


class Coordinator:
    """Shared by all workers of a process. Every public method may be called from any thread.

    Threads call `lease` and `push`; who runs many workers in one thread calls `request`, `read_next` and `grants`.
    clock: seconds, wall-clock or virtual, by which idle time is told.
    """

    def __init__(
        self,
        machine: p.State,
        settler: Settler,
        trace: Callable[[str], None],
        on_read: Callable[[Batch], None] = lambda _: None,
        on_update: Callable[[Coordinator], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        before_read: Callable[[Batch], None] = lambda _: None,
        statistics: Statistics | None = None,
    ) -> None:
        self.machine = machine
        self.progress = Progress()
        self.telemetry = Telemetry()
        self.next_span: Span | None = None
        self.failure: BaseException | None = None
        self.pauses: list[float] = []  # seconds from each switch to the first lease under the new pace
        self.teachers: tuple[str, ...] = ()  # that leases name from now on
        self.pilot: p.Pilot | None = None  # chooses the pace, if anybody does
        self.decisions: list[tuple[int, p.Decision]] = []  # (samples read, what it chose), of this process
        self.settling = False  # an update is being carried out: the parameters are not whole
        self._settler = settler
        self._trace = trace
        self._on_read, self._on_update, self._before_read = on_read, on_update, before_read
        self._statistics = statistics
        self._clock = clock
        self._joined: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._changed = threading.Condition(threading.RLock())
        self._batches: dict[int, Batch] = {}
        self._granted: dict[str, Lease] = {}
        self._source: Iterator[Batch] | None = None
        self._reading = False
        self._attempts = 0
        self._switched: float | None = None

    def open(self, source: Iterator[Batch]) -> None:
        """The next batches come from `source`; when it ends, what was read is drained."""
        with self._changed:
            self._source = source

    def join(self, worker: str) -> None:
        with self._changed:
            self._joined[worker] = self._clock()
            self._step(p.WorkerJoined(worker))

    def is_idle(self, worker: str) -> bool:
        """Whether it has neither asked for a lease nor holds one."""
        with self._changed:
            return worker not in self.machine.waiting and worker not in self.machine.holding

    def is_here(self, worker: str) -> bool:
        """Whether it has joined and not left."""
        with self._changed:
            return worker in self._joined

    def leave(self, worker: str) -> None:
        """It is gone; what it was computing goes to another. After a failure nobody is given anything any more: what is
        out stays so, and is read again by who goes on."""
        with self._changed:
            self._stop_waiting(worker)
            present = self.telemetry.present
            present[worker] = present.get(worker, 0.0) + self._clock() - self._joined.pop(worker)
            self._granted.pop(worker, None)
            if self.failure is None:
                self._step(p.WorkerLeft(worker))
            self._changed.notify_all()

    def leave_waiting(self, worker: str) -> bool:
        """It leaves if it has asked for a lease and has none; whether it has."""
        with self._changed:
            waits = worker in self.machine.waiting and worker in self._joined
            if waits:
                self.leave(worker)
            return waits

    def request(self, worker: str) -> None:
        """`worker` is free. Its lease is among `grants` at once or after some later call."""
        with self._changed:
            self._asked[worker] = self._clock()
            self._step(p.WorkRequested(worker))

    def read_next(self) -> bool:
        """Read a batch if somebody waits for one (at the end of the data, drain). Whether one was read."""
        with self._changed:
            if self._source is None or not self.machine.waiting or self.machine.ready:
                return False
            self._read(self._source)
            return True

    def can_read(self, batches: int) -> bool:
        """Whether so many batches, or all that are left, can be read without waiting for them. A source that does not
        tell is taken to be quick."""
        with self._changed:
            has = getattr(self._source, "has", None)
            return has is None or bool(has(batches))

    def grants(self) -> list[tuple[str, Lease]]:
        """The leases granted since the last call. Pull for them before anything else changes the parameters."""
        with self._changed:
            granted = list(self._granted.items())
            self._granted.clear()
            return granted

    @property
    def done(self) -> bool:
        """All data is read and settled."""
        return self._source is None and self.machine.drained

    def finished(self, seconds: float) -> bool:
        """Whether everything is settled or has failed; waits for it up to `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done or self.failure is not None, seconds)

    def lease(self, worker: str) -> Lease | None:
        """The next batch for `worker`, waiting as long as the pace says; None when the data is drained.

        Raises Stopped if the run has failed meanwhile or the worker was taken for dead, and whatever error reading the
        data raised.
        """
        with self._changed:
            if worker not in self._joined:
                raise Stopped
            self.request(worker)
            while True:
                if self.failure is not None or worker not in self._joined:
                    raise Stopped
                if worker in self._granted:
                    return self._granted.pop(worker)
                if self.done:
                    return None
                if self._source is not None and not self.machine.ready and not self._reading:
                    started = self._clock()
                    self._read(self._source)
                    if worker in self._asked:  # reading is work
                        self._asked[worker] += self._clock() - started
                else:
                    self._changed.wait()

    def push(
        self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor, seconds: float = 0.0
    ) -> None:
        """A gradient (of norm `norm`) that the settler holds already: let the machine decide on it. statistics: of
        the worker's batch normalisation now, [S]; seconds: that it was computed for (0: not known)."""
        with self._changed:
            if self.failure is not None or worker not in self._joined:
                raise Stopped
            progress = self.progress
            progress.sound = max(progress.sound, lease.version)
            self.telemetry.gradients.add(norm)
            if self._statistics is not None:
                self._statistics.workers[worker] = statistics
            progress.loss = loss if progress.loss != progress.loss else 0.98 * progress.loss + 0.02 * loss
            samples = self.machine.samples.get(lease.gradient, 0)
            self._step(p.GradientPushed(worker, lease.gradient))
            if self.pilot is not None:
                with self._telling():
                    self._follow(self.pilot, worker, samples, seconds)

    def _follow(self, pilot: p.Pilot, worker: str, samples: int, seconds: float) -> None:
        """Tell the autopilot of a gradient that has come, and do as it says."""
        machine = self.machine
        account = machine.account
        fact = p.Fact(worker, samples, seconds, self._clock(), account.applied, machine.version, machine.steps.keys())
        self._trace(p.fact_line(fact))
        decision = pilot.observe(fact)
        if machine.drained:
            pilot.pause()  # nobody works until the next day
        if decision is not None:
            self._trace(p.decision_line(decision))
            self.decisions.append((account.read, decision))
            self.switch(decision.pace)

    def switch(self, pace: p.Pace) -> None:
        """From now on train at `pace`."""
        with self._changed:
            self._switched = self._clock()
            self._step(p.PaceSwitched(pace))

    def snapshot(self, store: Callable[[list[Batch]], None]) -> None:
        """Call `store(pending)` while nothing changes. pending: batches read and not settled, in order."""
        with self._changed:
            for command in self._step(p.SnapshotRequested()):
                if isinstance(command, p.Snapshot):
                    store([self._batches[gradient] for gradient in command.pending])

    def count_time(self) -> None:
        """Bring the telemetry's idle and present seconds up to now."""
        with self._changed:
            now, counted = self._clock(), self.telemetry
            for times, since in ((counted.present, self._joined), (counted.idle, self._asked)):
                for worker, moment in since.items():
                    times[worker] = times.get(worker, 0.0) + now - moment
                    since[worker] = now

    def fail(self, error: BaseException) -> None:
        """Stop everybody; the first failure is kept."""
        with self._changed:
            if self.failure is None:
                self.failure = error
            self._changed.notify_all()

    def _read(self, source: Iterator[Batch]) -> None:
        """Read one batch without holding the lock (held once, by `lease`), so that pushes go on meanwhile."""
        self._reading = True
        self._changed.release()
        batch, failure = None, None
        try:
            batch = next(source, None)
        except BaseException as error:  # raised below, once nobody can take the broken source for a finished one
            failure = error
        self._changed.acquire()
        self._reading = False
        self._changed.notify_all()
        if failure is not None:
            self._source = None
            self.failure = self.failure or failure
            raise failure
        if batch is None:
            self._source = None
            self._step(p.DataEnded())
            return
        with self._telling():
            self._before_read(batch)  # while nothing knows of it yet: a switch here may apply what is buffered
        self._batches[self.machine.next_batch] = batch
        self.next_span = batch.following
        self.progress.rows_skipped += len(batch.skipped)
        self._step(p.BatchRead(batch.samples))
        with self._telling():
            self._on_read(batch)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """An error in here is the run's, whoever's call it strikes."""
        try:
            yield
        except Stopped:
            raise
        except BaseException as error:
            self.fail(error)
            raise

    def _step(self, event: p.Event) -> list[p.Command]:
        try:  # `_telling`, spelled out: several times a gradient, and thousands of small ones a second
            return self._carry_out(event)
        except Stopped:
            raise
        except BaseException as error:
            self.fail(error)
            raise

    def _carry_out(self, event: p.Event) -> list[p.Command]:
        commands = p.step(self.machine, event)
        self._trace(p.event_line(event))
        updated = False
        for command in commands:
            self._trace(p.command_line(command))
            match command:
                case p.Apply(version, parts):
                    self.settling = True
                    norm = self._settler.apply(command)
                    if norm is not None:
                        self.telemetry.updates.add(norm)
                    self.settling = False
                    updated = True
                    for part in parts:
                        del self._batches[part.gradient]
                    self._note_staleness([version - 1 - part.token for part in parts])
                case p.Drop(gradient, staleness):
                    self._settler.drop(gradient)
                    del self._batches[gradient]
                    self._note_staleness([staleness])
                case p.Grant(worker, gradient, token):
                    self._stop_waiting(worker)
                    self._attempts += 1
                    if self._switched is not None:
                        self.pauses.append(self._clock() - self._switched)
                        self._switched = None
                    batch, version = self._batches[gradient], self.machine.version
                    self._granted[worker] = Lease(gradient, token, version, batch, self._attempts, self.teachers)
                case p.Drained():
                    if self.pilot is not None:
                        self.pilot.pause()
                case _:
                    pass
        if commands:
            self._changed.notify_all()
        if updated:
            self._on_update(self)
        return commands

    def _note_staleness(self, staleness: list[int]) -> None:
        for s in staleness:
            self.telemetry.settled(s)
        self.progress.staleness = 0.9 * self.progress.staleness + 0.1 * sum(staleness) / len(staleness)

    def _stop_waiting(self, worker: str) -> None:
        asked = self._asked.pop(worker, None)
        if asked is not None:
            idle = self.telemetry.idle
            idle[worker] = idle.get(worker, 0.0) + self._clock() - asked
