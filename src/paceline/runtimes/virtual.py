"""The virtual body: thousands of workers in one process, on a clock of their own, with real gradients.

A heap of (time, number, worker, what) stands for the cluster. Everything that decides or computes is what the other
bodies use: the coordinator with the pace machine, the route, the replica. A gradient is computed on the parameters as
they are when its batch is granted: its rows and dense parameters are pulled at that moment, and the arithmetic, which
needs nothing else, may run in another thread until the worker's push is due.

    granted -> asked the servers -> pulled -> computed -> sent to the servers -> taken in = pushed; asks for more

A pace that needs every gradient (`Pace.collective`) goes over collectives: rows and their gradients are exchanged by
all-to-all, the dense gradient is summed by a ring when a round is complete, and there are no servers.

Where workers hold back some of their dense gradients (DCT), a push takes the bytes of what is left and of its places;
in a ring, the workers' own go around as they are, unless sums that are whole take less.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from paceline.batch import Batch
from paceline.clusterspec import ClusterSpec
from paceline.errors import TrainingError
from paceline.exchange.direct import DirectRoute
from paceline.exchange.thin import thin
from paceline.params.shard import Gradient
from paceline.runtimes.body import nothing_told
from paceline.runtimes.compute import Replica
from paceline.runtimes.computing import Outcome, Submit, Work, computing
from paceline.runtimes.coordinator import Coordinator, Lease
from paceline.runtimes.local import worker_names
from paceline.runtimes.statistics import Statistics
from paceline.runtimes.virtual_cluster import Doubles, Failures, Speeds, Wires
from paceline.threads import SureThread

_DEATHS = 100  # for each worker, with no gradient finished: the run leads nowhere
_ASKED, _COMPUTED, _ARRIVED, _SETTLED, _DIES, _BACK = range(6)


@dataclass(slots=True)
class _Task:
    """A lease on its way through a worker. size: bytes of its pull, and of its push; life: the worker's, which tells
    what a dead one held apart; result: what it computes; seconds: for how long; sent: what is pushed of the gradient,
    once that is known."""

    lease: Lease
    size: int
    collective: bool
    life: int
    result: Outcome
    seconds: float = 0.0
    sent: Gradient | None = None


class VirtualBody:
    """Runs a day's batches through `spec.workers` virtual workers.

    replicas: one for each real thread; stacked: gradients computed in one go (see `computing`).
    """

    virtual = True

    def __init__(
        self,
        spec: ClusterSpec,
        route: DirectRoute,
        replicas: list[Replica],
        statistics: Statistics,
        times: list[Doubles] | None = None,
        stacked: int = 1,
    ) -> None:
        self.spec = spec
        self.now = 0.0
        self._route, self._replicas, self._statistics, self._stacked = route, replicas, statistics, stacked
        self._speeds, self._failures, self._wires = Speeds(spec, times), Failures(spec), Wires(spec)
        self._order: list[int] = []  # in which workers ask when a checkpoint is gone on from within a day
        self._day: _Day | None = None
        self._names = worker_names(spec.workers)
        self._numbers = {name: i for i, name in enumerate(self._names)}

    def clock(self) -> float:
        """Virtual seconds since the start of the run."""
        return self.now

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the cluster."""
        order = [] if self._day is None else self._day.order()
        return {"seconds": self.now, "replayed": self._speeds.replayed, "order": order}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.now = state["seconds"]
        self._speeds.replayed = {int(worker): turn for worker, turn in state["replayed"].items()}
        self._order = state.get("order", [])

    def told(self) -> dict[str, Any]:
        """Nothing travels."""
        return nothing_told(self.spec.workers)

    def run_day(
        self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None] = lambda: None
    ) -> None:
        """Train on every batch of `source`; returns when all of it is settled.

        The events run in a thread of their own, so that an interrupt, which strikes the calling thread, never falls
        between a decision and its execution. `watch` is called ten times a second; the first error is raised here.
        """
        coordinator.open(source)

        def body() -> None:
            try:
                with ExitStack() as stack:
                    self._day = _Day(self, coordinator, computing(stack, self._replicas, self._stacked))
                    self._day.run()
                    if coordinator.failure is None:
                        self._day = None
            except BaseException as error:  # raised again below, in the calling thread
                coordinator.fail(error)

        thread = SureThread(target=body, name="virtual cluster", daemon=True)
        try:
            thread.start()
            while thread.is_alive():
                thread.join(0.1)
                watch()
        except BaseException as error:
            coordinator.fail(error)
            if thread.ident is not None:
                thread.join()
            raise
        if coordinator.failure is not None:
            raise coordinator.failure


class _Day:
    """One day's events."""

    def __init__(self, body: VirtualBody, coordinator: Coordinator, submit: Submit) -> None:
        self.body, self.coordinator, self.submit = body, coordinator, submit
        self.heap: list[tuple[float, int, int, int, _Task | float | None]] = []
        self.number = 0
        self.life = [0] * body.spec.workers
        self.alive: set[int] = set()
        self.dense: Tensor | None = None
        self.dense_version = -1
        self.deaths = 0  # since a gradient was finished
        self.barrier = 0.0  # when the last collective is through
        self.asking: dict[int, None] = {}  # workers, by when they asked last
        self.asked: tuple[int, list[int]] = (-1, [])  # a version, and that order when its first gradient was granted
        self.thin = 0.0  # bytes of this round's dense gradients, where some of them is held back

    def run(self) -> None:
        body, coordinator = self.body, self.coordinator
        body._statistics.keep(body._names)
        body._wires.rest(body.now)
        for worker in range(body.spec.workers):
            failure = body._failures.next(worker, body.now)
            if failure is None or failure[0] > body.now:
                self.join(worker)
            else:
                self.push(failure[1], worker, _BACK)
        for worker in [w for w in body._order if w in self.alive] or sorted(self.alive):
            self.ask(worker)
        for worker in sorted(self.alive - self.asking.keys()):
            self.ask(worker)
        body._order = []
        while not coordinator.done:
            if coordinator.failure is not None:
                return
            if not self.heap:
                raise TrainingError(self.stuck())
            body.now, _, what, worker, more = heapq.heappop(self.heap)
            if isinstance(more, _Task):
                self.go_on(what, worker, more)
            elif what == _DIES and isinstance(more, float):
                self.die(worker, more)
            else:
                self.join(worker)
                self.ask(worker)
        body.now = max(body.now, self.barrier)
        for worker in sorted(self.alive):
            coordinator.leave(body._names[worker])

    def order(self) -> list[int]:
        """In which order workers are to ask, if the day goes on from here, so that under a barrier each computes what
        it would have. None in particular unless workers hold back gradients: it matters to nobody else."""
        if self.body._statistics.holding is None:
            return []
        version, asked = self.asked
        return asked if version == self.coordinator.machine.version else list(self.asking)

    def stuck(self) -> str:
        spec = self.body.spec
        when = f"after {self.body.now:,.0f} virtual seconds"
        if self.alive:
            return f"nothing goes on {when}, with {len(self.alive)} workers. This is a bug in paceline: report it"
        return (
            f"no worker is left {when}: all {spec.workers} have failed (failures.mtbf_s={spec.failures.mtbf_s}) and"
            " none comes back; set failures.return_s"
        )

    def push(self, when: float, worker: int, what: int, more: _Task | float | None = None) -> None:
        if when != float("inf"):
            self.number += 1
            heapq.heappush(self.heap, (when, self.number, what, worker, more))

    def go_on(self, what: int, worker: int, task: _Task) -> None:
        """The next stage of a lease, unless its worker died over it."""
        body, wires = self.body, self.body._wires
        if task.life != self.life[worker]:
            return
        if what == _ASKED:
            self.compute(worker, task, wires.answered(body.now, task.size))
        elif what == _COMPUTED and task.collective:
            self.filter(worker, task)
            self.push(wires.exchanged(body.now, task.size), worker, _SETTLED, task)
        elif what == _COMPUTED:
            self.filter(worker, task)
            self.push(wires.sent(body.now, task.size), worker, _ARRIVED, task)
        elif what == _ARRIVED:
            # Only now: the servers take pushes and pulls in the order in which they come.
            self.push(wires.served(body.now, task.size), worker, _SETTLED, task)
        else:
            self.settle(worker, task)

    def filter(self, worker: int, task: _Task) -> None:
        """Decide what leaves of the gradient that `worker` has computed, if it holds back some of it."""
        holding = self.body._statistics.holding
        if holding is None:
            return
        gradient = task.result.result()[1]
        sent = holding.of(self.body._names[worker]).filter(gradient.dense, task.lease.version)
        task.sent = dataclasses.replace(gradient, dense=sent)
        if not task.collective:
            whole, thinned = 4 * sent.numel(), thin(sent.numpy()).nbytes
            task.size += thinned - whole

    def die(self, worker: int, back: float) -> None:
        name = self.body._names[worker]
        self.life[worker] += 1
        self.deaths += 1
        if self.deaths > _DEATHS * self.body.spec.workers:
            raise TrainingError(
                f"{self.deaths:,} deaths of workers and no gradient finished in between: failures.mtbf_s"
                f" ({self.body.spec.failures.mtbf_s}) is far below the time that a gradient takes; raise it"
            )
        self.alive.discard(worker)
        self.coordinator.leave(name)
        self.body._statistics.forget(name)
        self.push(back, worker, _BACK)
        self.dispatch()

    def join(self, worker: int) -> None:
        self.alive.add(worker)
        self.coordinator.join(self.body._names[worker])
        failure = self.body._failures.next(worker, self.body.now)
        if failure is not None:
            self.push(failure[0], worker, _DIES, failure[1])

    def ask(self, worker: int) -> None:
        self.next(worker)
        self.coordinator.request(self.body._names[worker])
        self.dispatch()

    def next(self, worker: int) -> None:
        """It is the last to ask."""
        self.asking.pop(worker, None)
        self.asking[worker] = None

    def settle(self, worker: int, task: _Task) -> None:
        self.next(worker)  # a snapshot after its push comes before its question
        loss, gradient, norm, statistics = task.result.result()
        self.deaths = 0
        coordinator, version = self.coordinator, self.coordinator.machine.version
        if task.sent is not None:
            gradient = task.sent
            self.thin += thin(gradient.dense.numpy()).nbytes
        self.body._route.push(task.lease.gradient, gradient)
        collective = coordinator.machine.pace.collective
        coordinator.push(self.body._names[worker], task.lease, loss, norm, statistics, task.seconds)
        if collective and coordinator.machine.version != version:
            size, wires, now = 4 * gradient.dense.numel(), self.body._wires, self.body.now
            if task.sent is None:
                self.barrier = wires.reduced(now, size, len(self.alive))
            else:
                self.barrier = wires.gathered(now, size, self.thin, len(self.alive))
        if coordinator.machine.version != version:
            self.thin = 0.0
        self.ask(worker)

    def dispatch(self) -> None:
        """Send off what was granted, and read what is waited for."""
        while True:
            for name, lease in self.coordinator.grants():
                self.start(self.body._numbers[name], lease)
            # One at a time: to read may switch the pace, and a switch may apply gradients.
            if not self.coordinator.read_next():
                return

    def start(self, worker: int, lease: Lease) -> None:
        body, wires = self.body, self.body._wires
        version = self.coordinator.machine.version
        if body._statistics.holding is not None and self.asked[0] != version:
            self.asked = version, list(self.asking)
        if self.dense is None or self.dense_version != version:
            # One copy serves all who are granted this version.
            self.dense, self.dense_version = body._route.shard.dense.flat.clone(), version
        pulled = body._route.pull(lease.batch.flat_ids(), None)
        collective = self.coordinator.machine.pace.collective
        # A push has the same size: ids, a number for each weight, and the dense gradient.
        size = pulled.bytes if collective else pulled.bytes + 4 * self.dense.numel()
        own = body._statistics.of(body._names[worker])  # replaced when this gradient is pushed, not before
        result = self.submit(Work(lease, pulled, self.dense, own))
        task = _Task(lease, size, collective, self.life[worker], result)
        if collective:
            self.compute(worker, task, wires.exchanged(max(body.now, self.barrier), size))
        else:
            self.push(wires.asked(body.now), worker, _ASKED, task)

    def compute(self, worker: int, task: _Task, when: float) -> None:
        """The worker has what it needs at `when`."""
        done = self.body._speeds.done(worker, task.lease.gradient, task.lease.batch.samples, when)
        task.seconds = done - when
        self.push(done, worker, _COMPUTED, task)
