"""A worker's side of the office: how it asks for leases and tells of gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.batch import Bag, Batch, Span
from paceline.cluster.lockstep import Order, Result
from paceline.errors import LossError
from paceline.exchange import wire
from paceline.exchange.desk import Superseded
from paceline.exchange.security import Security
from paceline.exchange.shards import Stream
from paceline.params.feedback import Feedback
from paceline.runtimes.coordinator import Lease, Stopped


class RemoteOffice:
    """A worker's stand-in for the coordinator; an `Office` of `paceline.runtimes.local`. statistics: the worker's own
    of batch normalisation, which each lease brings up to date; feedback: what its process holds back of gradients."""

    def __init__(
        self,
        security: Security,
        address: str,
        worker: str,
        ahead: bool,
        generation: int,
        statistics: Tensor,
        feedback: Feedback | None = None,
    ) -> None:
        self._stream = Stream(security, address, {"worker": worker, "ahead": ahead, "generation": generation})
        self._feedback = feedback
        self._unread = 0  # answers to pushes, which nobody waits for
        self._statistics = statistics
        self.busy: Callable[[], float] = float  # share of the time that the process computes
        self.carried: Callable[[], dict[str, int]] = dict  # bytes that the last gradient took over the network

    def lease(self, worker: str) -> Lease | None:
        """The next batch. Raises Stopped when there is no more for this worker."""
        self._stream.send({"op": "lease"}, [])
        try:
            for _ in range(self._unread):
                self._stream.receive()
            self._unread = 0
            head, data = _answer(self._stream, self._feedback)
        except Superseded:
            raise Stopped from None
        lease, statistics = read_lease(head, wire.unpack(data, 0, "u1"))
        self._statistics.copy_(statistics)
        return lease

    def push(
        self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor, seconds: float = 0.0
    ) -> None:
        """Report a gradient; the next `lease` tells if it was refused."""
        names = ("gradient", "token", "version", "attempt")
        told = {"op": "push", "loss": loss, "norm": norm, **{name: getattr(lease, name) for name in names}}
        told |= {"seconds": seconds, "carried": self.carried(), "busy": self.busy()}
        self._stream.send(told, [statistics.detach().numpy()])
        self._unread += 1

    def fail(self, error: BaseException) -> None:
        """Tell the coordinator why this worker cannot go on."""
        tell_failure(self._stream, error)

    def close(self) -> None:
        self._stream.close()


class RemoteRank:
    """A process's stand-in for the coordinator where all take part in every step."""

    def __init__(
        self,
        security: Security,
        address: str,
        name: str,
        shard: int | None,
        worker: str | None,
        generation: int,
        feedback: Feedback | None = None,
    ) -> None:
        self._feedback = feedback
        opened = {"rank": name, "shard": shard, "worker": worker, "generation": generation}
        self._stream = Stream(security, address, opened)

    def step(self, result: Result) -> tuple[Order, Tensor]:
        """Bring the result of the last step and wait for the next order, with the worker's statistics of batch
        normalisation. Raises Stopped when there is none for this process any more."""
        told = None
        if result.statistics is not None:
            told = {"loss": result.loss, "norm": result.norm, "seconds": result.seconds}
        head = {"op": "step", "result": told, "broken": result.broken, "sent": result.sent, "why": result.why}
        arrays = [] if result.statistics is None else [result.statistics.detach().numpy()]
        self._stream.send({**head, "predicted": result.predicted}, arrays)
        try:
            answer, data = _answer(self._stream, self._feedback)
        except Superseded:
            raise Stopped from None
        return read_order(answer, wire.unpack(data, 0, "u1"))

    def fail(self, error: BaseException) -> None:
        """Tell the coordinator why this process cannot go on."""
        tell_failure(self._stream, error)

    def close(self) -> None:
        self._stream.close()


def _answer(stream: Stream, feedback: Feedback | None) -> tuple[dict[str, Any], Any]:
    """The answer to a request for work, behind the questions that come first (see `paceline.cluster.held`)."""
    while True:
        head, data = stream.receive()
        if "held" not in head:
            return head, data
        assert feedback is not None
        if head["held"] == "load":
            feedback.load_once(torch.from_numpy(wire.unpack(data, 0, np.float32).copy()))
            stream.send({"op": "held", "number": None}, [])
        else:
            stream.send({"op": "held", "number": head["number"]}, [feedback.state(head["version"]).numpy()])


def tell_failure(stream: Stream, error: BaseException) -> None:
    """Tell the coordinator of an error; whether it arrives or not."""
    kind, file = type(error).__name__, getattr(error, "file", None)
    text = str(error) if isinstance(error, LossError) else f"{kind}: {error}"
    with contextlib.suppress(Exception):
        stream.send({"op": "fail", "kind": kind, "text": text, "file": file}, [])
        stream.receive()


def write_order(order: Order, statistics: Tensor) -> tuple[dict[str, Any], Any]:
    """An order, with the lease's batch and the worker's statistics, as a message."""
    told: dict[str, Any] = {
        "group": order.group,
        "rank": order.rank,
        "names": order.names,
        "workers": order.workers,
        "version": order.version,
        "load": order.load,
        "undo": order.undo,
    }
    if order.lease is None:
        whole, places = wire.join([statistics.detach().numpy()])
        return {**told, "places": places}, whole
    head, whole = write_lease(order.lease, statistics)
    return {**told, "lease": head}, whole


def read_order(head: dict[str, Any], whole: Any) -> tuple[Order, Tensor]:
    """What `write_order` wrote."""
    lease = None
    if "lease" in head:
        lease, statistics = read_lease(head["lease"], whole)
    else:
        statistics = torch.from_numpy(wire.parts(whole, head["places"])[0])
    workers, load = tuple(head["workers"]), tuple(head["load"])
    group, rank, names = head["group"], head["rank"], tuple(head["names"])
    order = Order(group, rank, names, workers, head["version"], load, lease, head["undo"])
    return order, statistics


def write_lease(lease: Lease, statistics: Tensor) -> tuple[dict[str, Any], Any]:
    """A lease with its batch, and the worker's running statistics, as a message."""
    batch = lease.batch
    bags = [array for bag in batch.bags for array in (bag.ids, bag.offsets, bag.weights)]
    whole, places = wire.join([statistics.detach().numpy(), batch.labels, batch.ids, batch.dense, *bags])
    told = {
        "gradient": lease.gradient,
        "token": lease.token,
        "version": lease.version,
        "attempt": lease.attempt,
        "teachers": lease.teachers,
        "span": batch.span.to_json(),
        "places": places,
    }
    return told, whole


def read_lease(head: dict[str, Any], whole: Any) -> tuple[Lease, Tensor]:
    """What `write_lease` wrote; the batch's `following` and `groups` stay behind."""
    statistics, labels, ids, dense, *rest = wire.parts(whole, head["places"])
    bags = tuple(Bag(*rest[i : i + 3]) for i in range(0, len(rest), 3))
    span = Span.from_json(head["span"])
    batch = Batch(labels, ids, bags, dense, None, span, span)
    numbers = (head["gradient"], head["token"], head["version"])
    lease = Lease(*numbers, batch, head["attempt"], tuple(head["teachers"]))
    return lease, torch.from_numpy(statistics)
