"""The local body: worker threads in one process, and the worker's story, which the cluster shares."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.batch import Batch, Ints
from paceline.errors import LossError
from paceline.exchange.direct import Pulled
from paceline.params.shard import Gradient
from paceline.runtimes.compute import Replica
from paceline.runtimes.coordinator import Coordinator, Lease, Stopped
from paceline.runtimes.statistics import Statistics


class Office(Protocol):
    """Where a worker gets leases and reports (a coordinator, or a stand-in for one far away)."""

    def lease(self, worker: str) -> Lease | None: ...

    def push(self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor) -> None: ...


class Route(Protocol):
    """How a worker reaches the parameters."""

    def pull(self, ids: Ints, dense: Tensor | None) -> Pulled: ...

    def push(self, number: int, gradient: Gradient) -> None: ...


def settle_thread() -> None:
    """One torch thread per worker (two 1-thread workers beat one 2-thread worker), and no denormal numbers: an Adagrad
    accumulator that starts at 1e-6 and tiny gradients meet them."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def work(name: str, office: Office, route: Route, replica: Replica) -> None:
    """A worker's whole life: lease, pull, compute, push, until the data is drained."""
    while (lease := office.lease(name)) is not None:
        pulled = route.pull(lease.batch.flat_ids(), replica.flat)
        loss, gradient, norm = compute(replica, lease, pulled)
        route.push(lease.gradient, gradient)
        office.push(name, lease, loss, norm, replica.statistics.clone())


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


class LocalBody:
    """Runs days with a thread for each replica, in real time."""

    virtual = False
    clock = staticmethod(time.monotonic)

    def __init__(self, route: Route, replicas: list[Replica], statistics: Statistics) -> None:
        self._route, self._replicas, self._statistics = route, replicas, statistics

    def state(self) -> dict[str, Any]:
        """Threads have nothing that a checkpoint would keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def run_day(
        self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None] = lambda: None
    ) -> None:
        """Train on every batch of `source`; see `run_day`."""
        names = worker_names(len(self._replicas))
        self._statistics.keep(names)
        for name, replica in zip(names, self._replicas, strict=True):
            replica.statistics.copy_(self._statistics.of(name))
        run_day(coordinator, self._route, self._replicas, source, watch)


def worker_names(count: int) -> list[str]:
    """What workers are called in every runtime."""
    return [f"worker-{i}" for i in range(count)]


def run_day(
    coordinator: Coordinator,
    route: Route,
    replicas: list[Replica],
    source: Iterator[Batch],
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Train on every batch of `source` with one thread per replica; returns when all of it is settled.

    `watch` is called ten times a second from the calling thread. The first error of a worker is raised here, after
    every thread has ended; KeyboardInterrupt stops the workers and is raised again.
    """
    coordinator.open(source)

    def body(name: str, replica: Replica) -> None:
        settle_thread()
        try:
            work(name, coordinator, route, replica)
        except Stopped:
            pass
        except BaseException as error:  # raised again below, in the calling thread
            coordinator.fail(error)

    names = worker_names(len(replicas))
    for name in names:
        coordinator.join(name)
    threads = [
        threading.Thread(target=body, args=(name, replica), name=name, daemon=True)
        for name, replica in zip(names, replicas, strict=True)
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
    for name in names:
        coordinator.leave(name)
