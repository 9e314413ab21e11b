"""The coordinator as an Arrow Flight service: workers anywhere ask it for leases and report to it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import torch
from torch import Tensor

from paceline.batch import Bag, Batch, Span
from paceline.cluster.traffic import Traffic
from paceline.errors import LossError, TrainingError
from paceline.exchange import wire
from paceline.exchange.desk import Superseded
from paceline.exchange.pulse import SILENCE
from paceline.exchange.security import Security
from paceline.exchange.shards import Stream
from paceline.runtimes.coordinator import Coordinator, Lease, Stopped
from paceline.runtimes.statistics import Statistics

_FAREWELL = 30.0  # seconds that workers have to leave a finished day


class Seat:
    """A worker's place at the office. ahead: it only takes leases while no pace has rounds, so that another seat of the
    same process computes meanwhile."""

    def __init__(self, worker: str, ahead: bool, generation: int, context: Any) -> None:
        self.worker, self.ahead, self.generation, self.context = worker, ahead, generation, context
        self.day = 0  # the last one that is over for it
        self.heard = time.monotonic()


class Office(fl.FlightServerBase):  # type: ignore[misc]
    """Serves one coordinator, day after day. do_exchange, command {"worker": name, "ahead": bool, "generation": G}."""

    def __init__(self, security: Security, host: str = "127.0.0.1") -> None:
        super().__init__(f"{security.scheme}://{host}:0", **security.server())
        self.generation = 0
        self._changed = threading.Condition()
        self._day = 0
        self._open = False
        self._coordinator: Coordinator | None = None
        self._statistics: Statistics | None = None
        self.seats: dict[str, Seat] = {}
        self.traffic: Traffic | None = None

    # --- the coordinator's side ---------------------------------------------------------------------------------

    def begin(self, generation: int) -> None:
        """Whoever is of an older generation is sent away."""
        with self._changed:
            self.generation, self._open, self._coordinator = generation, False, None
            self._changed.notify_all()

    def open_day(self, coordinator: Coordinator, statistics: Statistics) -> None:
        """Workers may come."""
        with self._changed:
            self._coordinator, self._statistics = coordinator, statistics
            self._day += 1
            self._open = True
            self._changed.notify_all()

    def close_day(self) -> None:
        """Return when every worker has left the day."""
        with self._changed:
            coordinator = self._coordinator
            if coordinator is None:
                return
            self._open = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._present(), _FAREWELL)
            hung = [seat for name, seat in self.seats.items() if coordinator.is_here(name)]
        for seat in hung:
            self._leave(seat)

    def workers(self) -> list[str]:
        """The workers that are connected."""
        with self._changed:
            return sorted(self.seats)

    def wait_for_workers(self, count: int, seconds: float) -> bool:
        """Whether so many are connected, after at most `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.seats) >= count, seconds)

    def send_away_the_dead(self) -> None:
        """Take leave of workers whose connection has broken while they waited for a lease, and of silent ones."""
        silent = time.monotonic() - SILENCE
        with self._changed:
            gone = [seat for seat in self.seats.values() if seat.context.is_cancelled() or seat.heard < silent]
        for seat in gone:
            self._leave(seat)

    def _present(self) -> bool:
        return self._coordinator is not None and any(self._coordinator.is_here(name) for name in self.seats)

    # --- the workers' side --------------------------------------------------------------------------------------

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """`alive`, with {"workers": [names]}: they still are."""
        if action.type != "alive":
            raise fl.FlightServerError(f"no action {action.type!r}; there is alive")
        with self._changed:
            for worker in json.loads(action.body.to_pybytes())["workers"]:
                if worker in self.seats:
                    self.seats[worker].heard = time.monotonic()
        yield fl.Result(b"{}")

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        opened = json.loads(descriptor.command)
        seat = Seat(opened["worker"], opened["ahead"], opened["generation"], context)
        with self._changed:
            if seat.generation != self.generation:
                raise fl.FlightServerError("superseded")
            before = self.seats.get(seat.worker)
        if before is not None:
            self._leave(before)
        with self._changed:
            self.seats[seat.worker] = seat
            self._changed.notify_all()
        writer.begin(wire.SCHEMA)
        try:
            while True:
                try:
                    chunk = reader.read_chunk()
                except (StopIteration, fl.FlightError, pa.ArrowException):
                    return
                head = wire.read_header(chunk)
                try:
                    told, arrays = self._answer(seat, head, chunk.data)
                except (Stopped, Superseded):
                    told, arrays = {"superseded": "the job has stopped or goes on without this worker"}, []
                writer.write_with_metadata(wire.pack(arrays), json.dumps(told).encode())
        except (fl.FlightError, pa.ArrowException):
            return  # it has gone
        finally:
            self._leave(seat)

    def _answer(self, seat: Seat, head: dict[str, Any], data: Any) -> tuple[dict[str, Any], list[Any]]:
        if head["op"] == "lease":
            return self._lease(seat)
        with self._changed:
            coordinator = self._coordinator
            if coordinator is None or seat.generation != self.generation or self.seats.get(seat.worker) is not seat:
                raise Superseded
        if head["op"] == "fail":
            error = LossError if head["kind"] == "LossError" else TrainingError
            made = error(head["text"])
            if isinstance(made, LossError):
                made.file = head["file"]
            coordinator.fail(made)
            raise Stopped
        if self.traffic is not None:
            self.traffic.add(int(seat.worker.split("+")[0].removeprefix("worker-")), head["carried"])
        lease = Lease(head["gradient"], head["token"], head["version"], _NO_BATCH, head["attempt"])
        statistics = torch.from_numpy(wire.unpack(data, 0, np.float32).copy())
        coordinator.push(seat.worker, lease, head["loss"], head["norm"], statistics)
        return {}, []

    def _lease(self, seat: Seat) -> tuple[dict[str, Any], list[Any]]:
        while True:
            coordinator, statistics = self._await_day(seat)
            lease = coordinator.lease(seat.worker)
            if lease is not None:
                told, whole = write_lease(lease, statistics.of(seat.worker))
                return told, [whole]
            with self._changed:
                seat.day = self._day
                coordinator.leave(seat.worker)
                self._changed.notify_all()

    def _await_day(self, seat: Seat) -> tuple[Coordinator, Statistics]:
        """Wait until there is work for this seat, and join."""
        with self._changed:
            while True:
                if seat.generation != self.generation or self.seats.get(seat.worker) is not seat:
                    raise Superseded
                coordinator, statistics = self._coordinator, self._statistics
                if seat.day < self._day and coordinator is not None and statistics is not None:
                    if coordinator.failure is not None:
                        raise Superseded
                    if coordinator.is_here(seat.worker):  # also of a day that is over: it has to be told
                        return coordinator, statistics
                    if self._open and not (seat.ahead and coordinator.machine.pace.round is not None):
                        coordinator.join(seat.worker)
                        return coordinator, statistics
                self._changed.wait(0.5 if seat.ahead else None)

    def _leave(self, seat: Seat) -> None:
        with self._changed:
            if self.seats.get(seat.worker) is seat:
                del self.seats[seat.worker]
                coordinator, statistics = self._coordinator, self._statistics
                if coordinator is not None and coordinator.is_here(seat.worker):
                    coordinator.leave(seat.worker)
                    if statistics is not None:
                        statistics.forget(seat.worker)
                self._changed.notify_all()


class RemoteOffice:
    """A worker's stand-in for the coordinator; an `Office` of `paceline.runtimes.local`. statistics: the worker's own
    of batch normalisation, which each lease brings up to date."""

    def __init__(
        self, security: Security, address: str, worker: str, ahead: bool, generation: int, statistics: Tensor
    ) -> None:
        self._stream = Stream(security, address, {"worker": worker, "ahead": ahead, "generation": generation})
        self._unread = 0  # answers to pushes, which nobody waits for
        self._statistics = statistics
        self.carried: Callable[[], dict[str, int]] = dict  # bytes that the last gradient took over the network

    def lease(self, worker: str) -> Lease | None:
        """The next batch. Raises Stopped when there is no more for this worker."""
        self._stream.send({"op": "lease"}, [])
        try:
            for _ in range(self._unread):
                self._stream.receive()
            self._unread = 0
            head, data = self._stream.receive()
        except Superseded:
            raise Stopped from None
        lease, statistics = read_lease(head, wire.unpack(data, 0, np.uint8))
        self._statistics.copy_(statistics)
        return lease

    def push(self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor) -> None:
        """Report a gradient; the next `lease` tells if it was refused."""
        names = ("gradient", "token", "version", "attempt")
        told = {"op": "push", "loss": loss, "norm": norm, **{name: getattr(lease, name) for name in names}}
        told["carried"] = self.carried()
        self._stream.send(told, [statistics.detach().numpy()])
        self._unread += 1

    def fail(self, error: BaseException) -> None:
        """Tell the coordinator why this worker cannot go on."""
        kind, file = type(error).__name__, getattr(error, "file", None)
        text = str(error) if isinstance(error, LossError) else f"{kind}: {error}"
        with contextlib.suppress(Exception):
            self._stream.send({"op": "fail", "kind": kind, "text": text, "file": file}, [])
            self._stream.receive()

    def close(self) -> None:
        self._stream.close()


_NO_BATCH: Any = None  # a report does not bring its batch back


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
    lease = Lease(head["gradient"], head["token"], head["version"], batch, head["attempt"])
    return lease, torch.from_numpy(statistics)
