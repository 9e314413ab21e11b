"""A worker's way to one shard: over Arrow Flight, or straight to the desk where the shard is in the same process.

Both are used in two halves (ask, then take the answer), so that all shards work at the same time.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from paceline.batch import Ints
from paceline.errors import PacelineError
from paceline.exchange import wire
from paceline.exchange.desk import Desk, Rows, Superseded
from paceline.exchange.direct import Ticket
from paceline.exchange.security import Security
from paceline.exchange.thin import Thin, thin
from paceline.params.sparse import Floats


class PeerLost(PacelineError):
    """A process of the cluster cannot be reached any more."""


class Stream:
    """A lasting exchange with a service: messages one way, answers the other, in order."""

    def __init__(self, security: Security, address: str, opened: dict[str, Any]) -> None:
        self.address = address
        self._client = security.connect(address)
        try:
            self._writer, self._reader = self._client.do_exchange(
                fl.FlightDescriptor.for_command(json.dumps({**opened, "inner": security.inner}).encode())
            )
            self._writer.begin(wire.SCHEMA)
        except (fl.FlightError, pa.ArrowException) as error:
            raise PeerLost(f"{address}: {_short(error)}") from error

    def send(self, head: dict[str, Any], arrays: list[Any]) -> int:
        """Returns the bytes of the arrays."""
        message = wire.pack(arrays)
        try:
            self._writer.write_with_metadata(message, json.dumps(head).encode())
        except (fl.FlightError, pa.ArrowException, ValueError) as error:
            raise PeerLost(f"{self.address}: {_short(error)}") from error
        return wire.size(message)

    def receive(self) -> tuple[dict[str, Any], Any]:
        """(header, message). Raises Superseded, PeerLost, or RuntimeError if the other side says that it failed."""
        try:
            chunk = self._reader.read_chunk()
        except (StopIteration, fl.FlightError, pa.ArrowException) as error:
            raise PeerLost(f"{self.address}: {_short(error)}") from error
        head = wire.read_header(chunk)
        if "superseded" in head:
            raise Superseded(head["superseded"])
        if "failed" in head:
            raise RuntimeError(f"{self.address}: {head['failed']}")
        return head, chunk.data

    def close(self) -> None:
        """Break it off, whatever it is doing; whoever waits in `receive` gets PeerLost."""
        for end in (self._reader.cancel, self._client.close):
            with contextlib.suppress(fl.FlightError, pa.ArrowException, OSError):
                end()


def _short(error: BaseException) -> str:
    return str(error).split(". ")[0].strip()[:200] or type(error).__name__


class ShardWay(Protocol):
    """carried: bytes that went over the network, by kind."""

    carried: dict[str, int]

    def ask(self, ticket: Ticket, ids: Ints, have: int) -> None: ...

    def ask_read(self, ids: Ints) -> None: ...

    def answer(self) -> Rows: ...

    def give(self, ticket: Ticket, dense: Floats, row_gradients: Floats) -> None: ...

    def confirm(self) -> None: ...

    def close(self) -> None: ...


class FarShard:
    """Over the network. bf16: rows and their gradients travel in bfloat16; thin: gradients of the dense parameters are
    mostly zeros, which do not travel."""

    def __init__(
        self, security: Security, address: str, generation: int, width: int, bf16: bool, thin: bool = False
    ) -> None:
        self.carried: dict[str, int] = {}
        self._stream = Stream(security, address, {"kind": "worker", "generation": generation})
        self._width, self._bf16, self._thin = width, bf16, thin

    def ask(self, ticket: Ticket, ids: Ints, have: int) -> None:
        asked = [ticket.gradient, ticket.attempt, ticket.version]
        self._count("ids", self._stream.send({"op": "pull", "ticket": asked, "have": have, "bf16": self._bf16}, [ids]))

    def ask_read(self, ids: Ints) -> None:
        self._count("ids", self._stream.send({"op": "read"}, [ids]))

    def answer(self) -> Rows:
        head, data = self._stream.receive()
        half = head["bf16"]
        weights = (
            wire.from_bf16(wire.unpack(data, 0, np.int16, -1, self._width))
            if half
            else wire.unpack(data, 0, np.float32, -1, self._width)
        )
        dense = wire.unpack(data, 1, np.float32) if head["dense"] else None
        self._count("rows", weights.nbytes // (2 if half else 1))
        self._count("dense", 0 if dense is None else dense.nbytes)
        return Rows(weights, dense, head["version"])

    def give(self, ticket: Ticket, dense: Floats, row_gradients: Floats) -> None:
        rows = wire.to_bf16(row_gradients) if self._bf16 else row_gradients
        asked = [ticket.gradient, ticket.attempt, ticket.version]
        found = thin(dense) if self._thin else Thin("whole", dense, np.zeros(0, np.uint8))
        told = {"op": "push", "ticket": asked, "bf16": self._bf16, "form": found.form, "entries": dense.shape[0]}
        self._stream.send(told, [found.values, rows, found.places])
        self._count("row_gradients", rows.nbytes)
        self._count("dense_gradients", found.values.nbytes)
        if self._thin:
            self._count("dense_gradients_places", found.places.nbytes)

    def confirm(self) -> None:
        self._stream.receive()

    def close(self) -> None:
        self._stream.close()

    def _count(self, kind: str, size: int) -> None:
        self.carried[kind] = self.carried.get(kind, 0) + size


class NearShard:
    """In the same process: nothing travels."""

    def __init__(self, desk: Desk, generation: int) -> None:
        self.carried: dict[str, int] = {}
        self._desk, self._generation = desk, generation
        self._asked: tuple[Ticket | None, Ints, int] | None = None

    def ask(self, ticket: Ticket, ids: Ints, have: int) -> None:
        self._asked = (ticket, ids, have)

    def ask_read(self, ids: Ints) -> None:
        self._asked = (None, ids, -1)

    def answer(self) -> Rows:
        assert self._asked is not None
        ticket, ids, have = self._asked
        return self._desk.read(ids) if ticket is None else self._desk.pull(self._generation, ticket, ids, have)

    def give(self, ticket: Ticket, dense: Floats, row_gradients: Floats) -> None:
        self._desk.push(self._generation, ticket, dense.copy(), row_gradients.copy())

    def confirm(self) -> None:
        """It has it already."""

    def close(self) -> None:
        """Nothing to close."""
