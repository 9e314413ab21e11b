"""Computing the gradients of many virtual workers: at once, in threads, or several in one go."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.exchange.direct import Pulled
from paceline.params.shard import Gradient
from paceline.runtimes.compute import Replica, StackedReplica
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.local import checked, compute, settle_thread

Result = tuple[float, Gradient, float, Tensor]  # loss, gradient, its norm, the worker's new statistics


@dataclass(frozen=True, slots=True)
class Work:
    """All that a gradient depends on: the lease, its rows, the dense parameters and the worker's own statistics."""

    lease: Lease
    pulled: Pulled
    dense: Tensor
    statistics: Tensor


class Outcome(Protocol):
    """A result, now or later."""

    def result(self) -> Any: ...


Submit = Callable[[Work], Outcome]


def computing(stack: ExitStack, replicas: list[Replica], stacked: int) -> Submit:
    """One replica: in this thread; several: in a thread for each. A gradient depends on its work alone, so the number
    of threads changes no bit. stacked > 1: up to so many gradients in one go, by batched products; that saves the
    calls that small models mostly consist of, and rounds differently."""
    settle_thread()  # this one carries out updates, together with helpers that are settled
    if stacked > 1:
        return _Stack(replicas[0], stacked).submit
    if len(replicas) == 1:
        return lambda work: _Done(_compute(replicas[0], work))
    free: SimpleQueue[Replica] = SimpleQueue()
    for replica in replicas:
        free.put(replica)
    pool = ThreadPoolExecutor(len(replicas), "compute", settle_thread)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)

    def borrowed(work: Work) -> Result:
        replica = free.get()
        try:
            return _compute(replica, work)
        finally:
            free.put(replica)

    return lambda work: pool.submit(borrowed, work)


def _compute(replica: Replica, work: Work) -> Result:
    with torch.no_grad():
        replica.flat.copy_(work.dense)
    replica.statistics.copy_(work.statistics)
    loss, gradient, norm = compute(replica, replica.taught(work.lease), work.pulled)
    return loss, gradient, norm, replica.statistics.clone()


@dataclass(frozen=True, slots=True)
class _Done:
    value: Result

    def result(self) -> Result:
        return self.value


class _Later:
    """Work that waits until somebody needs its result."""

    def __init__(self, stack: _Stack, work: Work) -> None:
        self._stack: _Stack = stack
        self.work: Work | None = work  # until it is done: a result is half as large as what it needs
        self.value: Result | None = None

    def result(self) -> Result:
        if self.value is None:
            self._stack.compute(self)
        assert self.value is not None
        return self.value


class _Stack:
    """Work that is to be done, in the order in which it came."""

    def __init__(self, replica: Replica, most: int) -> None:
        self._replica, self._stacked, self._most = replica, StackedReplica(replica), most
        self._waiting: dict[int, dict[_Later, Work]] = {}

    def submit(self, work: Work) -> _Later:
        """Keep work until its stack is full or its result is wanted, whichever comes first."""
        later = _Later(self, work)
        waiting = self._waiting.setdefault(work.lease.batch.samples, {})
        waiting[later] = work
        if len(waiting) >= self._most:
            self._compute(waiting)
        return later

    def compute(self, wanted: _Later) -> None:
        """Everything that has the same shape as `wanted`."""
        assert wanted.work is not None
        self._compute(self._waiting[wanted.work.lease.batch.samples])

    def _compute(self, waiting: dict[_Later, Work]) -> None:
        chosen, work = list(waiting), list(waiting.values())
        waiting.clear()
        if len(chosen) == 1:
            chosen[0].value, chosen[0].work = _compute(self._replica, work[0]), None
            return
        made = self._stacked.gradients(
            [self._replica.taught(w.lease).batch for w in work],
            [w.pulled for w in work],
            torch.stack([w.dense for w in work]),
            torch.stack([w.statistics for w in work]),
        )
        for later, its, (loss, gradient, statistics) in zip(chosen, work, made, strict=True):
            loss, gradient, norm = checked(its.lease, loss, gradient)
            later.value, later.work = (loss, gradient, norm, statistics), None
