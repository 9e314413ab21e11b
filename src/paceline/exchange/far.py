"""All shards of a job as one store: the coordinator's orders go out in order, and are done while it goes on."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
from torch import Tensor

from paceline.batch import Ints
from paceline.errors import ClusterLost
from paceline.exchange.desk import Superseded
from paceline.exchange.direct import Pulled
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.orders import write_apply
from paceline.exchange.security import Security
from paceline.exchange.shards import FarShard, PeerLost, Stream
from paceline.pace import Apply

Answer = dict[str, Any]


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


class FarShards:
    """A `paceline.runtimes.body.Store` of shards in other processes. slices: how many dense parameters each holds, in
    the order of the flat vector; width: weights of a row; on_failure: called once a shard does not obey."""

    def __init__(
        self,
        security: Security,
        addresses: Sequence[str],
        generation: int,
        slices: Sequence[int],
        width: int,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._security, self._addresses, self._generation = security, list(addresses), generation
        self._slices, self._width = slices, width
        self.lines = [OrderLine(security, address, generation, on_failure) for address in addresses]
        self.version = 0  # that was ordered
        self._norms: deque[list[Future[Answer]]] = deque()
        self._last: list[Future[Answer]] = []
        self._own = threading.local()
        self._routes: list[ShardedRoute] = []
        self._lock = threading.Lock()

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
        return self._route().read(ids)

    def read_dense(self, into: Tensor) -> None:
        """The dense parameters, for evaluation, from any thread."""
        self._route().read_dense(into)

    def close(self) -> None:
        """Break off all streams."""
        for line in self.lines:
            line.close()
        for route in self._routes:
            route.close()

    def _route(self) -> ShardedRoute:
        """This thread's own."""
        found: ShardedRoute | None = getattr(self._own, "route", None)
        if found is None:
            try:
                ways = [FarShard(self._security, a, self._generation, self._width, False) for a in self._addresses]
            except PeerLost as error:
                raise ClusterLost(f"a shard is lost: {error}") from error
            found = self._own.route = ShardedRoute(ways, self._slices, self._width)
            with self._lock:
                self._routes.append(found)
        return found
