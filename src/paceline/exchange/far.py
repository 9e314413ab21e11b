"""All shards of a job as one store: the coordinator's orders go out in order, and are done while it goes on."""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
from torch import Tensor

from paceline.batch import Ints
from paceline.errors import ClusterLost, LossError, PacelineError, RunDirError, StorageError
from paceline.exchange.desk import Superseded
from paceline.exchange.direct import Pulled
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.orders import write_apply
from paceline.exchange.pulse import Pulse
from paceline.exchange.security import Security
from paceline.exchange.shards import FarShard, PeerLost, Stream
from paceline.pace import Apply

Answer = dict[str, Any]
_LOOK = 0.5  # seconds


class OrderLine:
    """The coordinator's orders to one shard; answers come in the same order, to a thread of their own."""

    def __init__(
        self, security: Security, address: str, generation: int, on_failure: Callable[[BaseException], None]
    ) -> None:
        self.address = address
        self._stream = Stream(security, address, {"kind": "orders", "generation": generation})
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._open: deque[Future[Answer]] = deque()
        self._failure: BaseException | None = None
        self._sent = threading.Semaphore(0)
        threading.Thread(target=self._listen, name=f"orders to {address}", daemon=True).start()

    def order(self, head: dict[str, Any]) -> Future[Answer]:
        """Send an order; the future has the answer. Raises ClusterLost if the shard is lost."""
        future: Future[Answer] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._open.append(future)
            try:
                self._stream.send(head, [])
            except PeerLost as error:
                self._open.pop()
                raise ClusterLost(f"a shard is lost: {error}") from error
        self._sent.release()
        return future

    def close(self) -> None:
        self._stream.close()

    def _listen(self) -> None:
        while True:
            self._sent.acquire()
            try:
                answer, _ = self._stream.receive()
            except BaseException as error:  # told to everybody who waits, and to the coordinator
                lost = isinstance(error, (PeerLost, Superseded))
                failure = ClusterLost(f"a shard is lost: {error}") if lost else error
                with self._lock:
                    self._failure = failure
                    waiting = list(self._open)
                    self._open.clear()
                self._on_failure(failure)
                for future in waiting:
                    future.set_exception(failure)
                return
            with self._lock:
                future = self._open.popleft()
            future.set_result(answer)


def call(security: Security, address: str, action: str, **asked: Any) -> Answer:
    """What a service answers to an action. Raises ClusterLost if it cannot be reached."""
    try:
        with security.connect(address) as client:
            results = list(client.do_action(fl.Action(action, json.dumps({**asked, "inner": security.inner}).encode())))
    except (fl.FlightError, pa.ArrowException) as error:
        raise ClusterLost(f"{address} does not answer: {str(error).split('. ')[0][:200]}") from error
    found: Answer = json.loads(results[0].body.to_pybytes())
    return found


def _in_thread(function: Callable[[], Answer]) -> Future[Answer]:
    """What a function returns, some time. Nobody has to wait for its thread."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised by who asks the future
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def told_error(told: dict[str, str]) -> PacelineError:
    """The error of another process, from what `tell_error` made of it."""
    kinds: dict[str, type[PacelineError]] = {kind.__name__: kind for kind in (LossError, RunDirError, StorageError)}
    return kinds.get(told["kind"], ClusterLost)(told["text"])


def tell_error(error: BaseException) -> dict[str, dict[str, str]]:
    """An error as JSON values."""
    return {"failed": {"kind": type(error).__name__, "text": str(error)}}


@contextmanager
def _lost_as_such() -> Iterator[None]:
    try:
        yield
    except (PeerLost, Superseded) as error:
        raise ClusterLost(f"a shard is lost: {error}") from error


class FarShards:
    """A `paceline.runtimes.body.Store` of shards in other processes. slices: how many dense parameters each holds, in
    the order of the flat vector; width: weights of a row.

    failure: what a shard that does not obey any more gave as a reason, or that it is silent; on_failure is told of it
    as well. From `connect` to `close` every shard is asked whether it is there: if one is silent, everything that waits
    for any of them fails.
    """

    def __init__(
        self, security: Security, addresses: Sequence[str], generation: int, slices: Sequence[int], width: int
    ) -> None:
        self._security, self._addresses, self._generation = security, list(addresses), generation
        self._slices, self._width = slices, width
        self.failure: BaseException | None = None
        self.on_failure: Callable[[BaseException], None] = lambda _: None
        self.lines: list[OrderLine] = []
        self.version = 0  # that was ordered
        self._norms: deque[list[Future[Answer]]] = deque()
        self._last: list[Future[Answer]] = []
        self._routes: list[ShardedRoute] = []
        self._free: list[ShardedRoute] = []  # those of them that nobody uses now
        self._lock = threading.Lock()
        self._pulse = Pulse(security, self._addresses, "statistics", self._silent)

    def connect(self, snapshot: str | None) -> None:
        """Give every shard the state of a snapshot's folder, or a fresh one, and begin the generation."""
        self._pulse.start()
        answers = self._everywhere("reset", snapshot=snapshot)
        self.version = int(answers[0]["version"])
        self.lines = [OrderLine(self._security, a, self._generation, self._fail) for a in self._addresses]
        self._check()

    def write(self, folder: str) -> list[Answer]:
        """Have the copies that were ordered written under `folder`; what each shard says of it."""
        return self._everywhere("write", folder=folder)

    def _everywhere(self, action: str, **asked: Any) -> list[Answer]:
        """What each shard answers to an action. Raises the error of the first that failed."""
        asked |= {"generation": self._generation}
        futures = [_in_thread(partial(call, self._security, a, action, **asked)) for a in self._addresses]
        while not wait(futures, _LOOK).done >= set(futures):
            self._check()
        answers = [future.result() for future in futures]
        for answer in answers:
            if "failed" in answer:
                raise told_error(answer["failed"])
        return answers

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: BaseException) -> None:
        self.failure = self.failure or error
        self.on_failure(error)

    def apply(self, command: Apply) -> None:
        """Order an update. Its norm is among `take_counted` later."""
        order = write_apply(command)
        self._last = [line.order(order) for line in self.lines]
        self._norms.append(self._last)
        self.version = command.version

    def drop(self, number: int) -> None:
        """Order that a gradient is forgotten."""
        self._last = [line.order({"op": "drop", "gradient": number}) for line in self.lines]

    def settle(self) -> None:
        """Return when everything that was ordered is done."""
        for future in self._last:
            future.result()

    def ask(self, order: str, **values: Any) -> list[Answer]:
        """The answers of all shards to an order (see `paceline.cluster.node`), given behind all orders before it."""
        return [future.result() for future in [line.order({"op": order, **values}) for line in self.lines]]

    @property
    def ids(self) -> int:
        """Rows there are, in all shards."""
        return sum(int(answer["ids"]) for answer in self.ask("statistics"))

    @property
    def bytes(self) -> int:
        """Memory of all tables."""
        return sum(int(answer["bytes"]) for answer in self.ask("statistics"))

    def take_counted(self) -> tuple[Ints, list[float]]:
        """See `DirectRoute.take_counted`."""
        ages = sum((np.array(answer["ages"], np.int64) for answer in self.ask("counted")), np.zeros(64, np.int64))
        norms = []
        while self._norms and all(future.done() for future in self._norms[0]):
            norms.append(math.sqrt(sum(future.result()["norm"] ** 2 for future in self._norms.popleft())))
        return ages, norms

    def read(self, ids: Ints) -> Pulled:
        """Rows for evaluation, from any thread."""
        with self._route() as route:
            return route.read(ids)

    def read_dense(self, into: Tensor) -> None:
        """The dense parameters, for evaluation, from any thread."""
        with self._route() as route:
            route.read_dense(into)

    def close(self) -> None:
        """Break off all streams."""
        self._pulse.stop()
        self._break_off()

    def _silent(self, address: str) -> None:
        self._fail(ClusterLost(f"the shard at {address} is silent", (address,)))
        self._break_off()

    def _break_off(self) -> None:
        with self._lock:
            routes = list(self._routes)
        for line in self.lines:
            line.close()
        for route in routes:
            route.close()

    @contextmanager
    def _route(self) -> Iterator[ShardedRoute]:
        """One that nobody else uses meanwhile: threads come and go with every evaluation, streams need not."""
        with self._lock:
            route = self._free.pop() if self._free else None
        if route is None:
            self._check()
            route = self._new_route()
        try:
            with _lost_as_such():
                yield route
        except BaseException:
            route.close()  # an answer may be under way that the next one would take for its own
            with self._lock:
                self._routes.remove(route)
            raise
        with self._lock:
            self._free.append(route)

    def _new_route(self) -> ShardedRoute:
        ways: list[FarShard] = []
        try:
            with _lost_as_such():
                for address in self._addresses:
                    ways.append(FarShard(self._security, address, self._generation, self._width, False))
        except BaseException:
            for way in ways:
                way.close()
            raise
        route = ShardedRoute(ways, self._slices, self._width)
        with self._lock:
            self._routes.append(route)
        if self.failure is not None:  # all were broken off meanwhile
            route.close()
            raise self.failure
        return route
