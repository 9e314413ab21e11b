"""The local body: worker threads in one process, and the worker's story, which the cluster shares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.batch import Batch, Ints
from paceline.errors import LossError
from paceline.exchange.direct import Pulled, Ticket
from paceline.params.shard import Gradient
from paceline.runtimes.body import nothing_told
from paceline.runtimes.compute import Replica, sent
from paceline.runtimes.coordinator import Coordinator, Lease, Stopped
from paceline.runtimes.statistics import Statistics
from paceline.runtimes.turns import Killed, Turn
from paceline.threads import SureThread


class Office(Protocol):
    """Where a worker gets leases and reports (a coordinator, or a stand-in for one far away)."""

    def lease(self, worker: str) -> Lease | None: ...

    def push(
        self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor, seconds: float = 0.0
    ) -> None: ...


class Route(Protocol):
    """How a worker reaches the parameters."""

    def pull(self, ids: Ints, dense: Tensor | None, ticket: Ticket | None = None) -> Pulled: ...

    def push(self, number: int, gradient: Gradient) -> None: ...


def settle_thread() -> None:
    """One torch thread per worker (two 1-thread workers beat one 2-thread worker), and no denormal numbers: an Adagrad
    accumulator that starts at 1e-6 and tiny gradients meet them."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def work(name: str, office: Office, route: Route, replica: Replica, turn: Turn | None = None) -> None:
    """A worker's whole life: lease, pull, compute, push, until the data is drained. turn: held while it computes."""
    turn, feedback = turn or Turn(), replica.feedback  # by the end of this life the replica may have another one
    while (lease := office.lease(name)) is not None:
        lease = replica.taught(lease)  # a new teacher takes time to load, which is no computing
        pulled = route.pull(lease.batch.flat_ids(), replica.flat, lease.ticket)
        with turn:
            loss, gradient, norm = compute(replica, lease, pulled)
        route.push(lease.gradient, sent(gradient, feedback, lease.version))
        office.push(name, lease, loss, norm, replica.statistics.clone(), turn.seconds)


def compute(replica: Replica, lease: Lease, pulled: Pulled) -> tuple[float, Gradient, float]:
    """(mean log loss, its gradient, the gradient's norm) of a leased batch. Raises LossError if one is not finite."""
    return checked(lease, *replica.gradient(lease.batch, pulled))


def checked(lease: Lease, loss: float, gradient: Gradient) -> tuple[float, Gradient, float]:
    """The same with the gradient's norm. Raises LossError if one is not finite."""
    norm = gradient.norm()
    check_finite(lease, loss, norm)
    return loss, gradient, norm


def check_finite(lease: Lease, loss: float, norm: float) -> None:
    """Raises LossError if the loss or the gradient's norm is not finite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise LossError(_not_finite(lease.batch, loss, lease), lease.batch.span.start.file)


def _not_finite(batch: Batch, loss: float, lease: Lease) -> str:
    span = batch.span
    return (
        f"the loss became {loss} (or its gradient not finite) at gradient {lease.gradient}: day {span.day},"
        f" rows {span.start.row:,} to {span.stop.row:,}. Usually a learning rate is too high"
        " (optimizer.sparse.lr, optimizer.dense.lr), or a number in these rows is huge (transform: log_bucket helps)"
    )


@dataclass(frozen=True, slots=True)
class Fault:
    """What a person wants to see a worker do: be slower by a factor, die once so many samples were read."""

    slow: float = 1.0
    dies_at: int | None = None

    def is_dead(self, samples: int) -> bool:
        """Whether it has died once `samples` were read."""
        return self.dies_at is not None and samples >= self.dies_at


class LocalBody:
    """Runs days with a thread for each replica, in real time."""

    virtual = False
    clock = staticmethod(time.monotonic)

    def __init__(
        self, route: Route, replicas: list[Replica], statistics: Statistics, faults: dict[str, Fault] | None = None
    ) -> None:
        self._route, self._replicas, self._statistics = route, replicas, statistics
        self._faults = faults or {}

    def state(self) -> dict[str, Any]:
        """Threads have nothing that a checkpoint would keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def told(self) -> dict[str, Any]:
        """Nothing travels."""
        return nothing_told(len(self._replicas))

    def run_day(
        self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None] = lambda: None
    ) -> None:
        """Train on every batch of `source`; see `run_day`."""
        read = coordinator.machine.account.read
        alive = [
            (name, replica)
            for name, replica in zip(worker_names(len(self._replicas)), self._replicas, strict=True)
            if not self._faults.get(name, Fault()).is_dead(read)
        ]
        self._statistics.keep([name for name, _ in alive])
        for name, replica in alive:
            replica.statistics.copy_(self._statistics.of(name))
            if self._statistics.holding is not None:
                replica.feedback = self._statistics.holding.of(name)
        run_day(coordinator, self._route, dict(alive), source, watch, self._faults)


def worker_names(count: int) -> list[str]:
    """What workers are called in every runtime."""
    return [f"worker-{i}" for i in range(count)]


def run_day(
    coordinator: Coordinator,
    route: Route,
    replicas: list[Replica] | dict[str, Replica],
    source: Iterator[Batch],
    watch: Callable[[], None] = lambda: None,
    faults: dict[str, Fault] | None = None,
) -> None:
    """Train on every batch of `source` with one thread per replica (by the worker's name, or in order); returns when
    all of it is settled.

    `watch` is called ten times a second from the calling thread. The first error of a worker is raised here, after
    every thread has ended; KeyboardInterrupt stops the workers and is raised again.
    """
    coordinator.open(source)

    def body(name: str, replica: Replica) -> None:
        settle_thread()
        fault = (faults or {}).get(name, Fault())
        turn = Turn(fault.slow, None, lambda: fault.is_dead(account.read))
        try:
            work(name, coordinator, route, replica, turn)
        except Stopped:
            pass
        except Killed:
            coordinator.leave(name)
        except BaseException as error:  # raised again below, in the calling thread
            coordinator.fail(error)

    if isinstance(replicas, list):
        replicas = dict(zip(worker_names(len(replicas)), replicas, strict=True))
    account = coordinator.machine.account
    for name in replicas:
        coordinator.join(name)
    threads = [
        SureThread(target=body, args=(name, replica), name=name, daemon=True) for name, replica in replicas.items()
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.1)
                watch()
    except BaseException as error:
        coordinator.fail(error)
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        raise
    if coordinator.failure is not None:
        raise coordinator.failure
    for name in replicas:
        if coordinator.is_here(name):
            coordinator.leave(name)
