"""A shard as an Arrow Flight service. The protocol, for any Flight client, is written down in docs/flight.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from paceline.exchange import wire
from paceline.exchange.desk import Desk, Superseded
from paceline.exchange.direct import Ticket
from paceline.exchange.orders import read_apply
from paceline.exchange.security import Security
from paceline.exchange.thin import Thin, thicken

Action = Callable[[dict[str, Any]], dict[str, Any]]


class ShardService(fl.FlightServerBase):  # type: ignore[misc]
    """Serves a desk until `shutdown`.

    do_exchange, command {"kind": "worker" | "orders", "generation": G}: pulls and pushes, or the coordinator's orders
    do_get, ticket {"ids": [...]}: rows of a running job, for anybody
    do_action: `statistics`, and what `actions` adds (each takes and gives a JSON object)
    """

    def __init__(
        self, desk: Desk, security: Security, actions: dict[str, Action], host: str = "127.0.0.1", port: int = 0
    ) -> None:
        super().__init__(f"{security.scheme}://{host}:{port}", **security.server())
        self._desk, self._security = desk, security
        self._actions: dict[str, Action] = {"statistics": self._statistics, **actions}

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        opened = json.loads(descriptor.command)
        self._security.check(opened)
        generation = int(opened["generation"])
        answer = {"worker": self._worker, "orders": self._order}[opened["kind"]]
        writer.begin(wire.SCHEMA)
        while True:
            try:
                chunk = reader.read_chunk()
            except (StopIteration, fl.FlightError, pa.ArrowException):
                return  # the other side has gone
            head = wire.read_header(chunk)
            try:
                told, arrays = answer(generation, head, chunk.data)
            except Superseded as error:
                told, arrays = {"superseded": str(error)}, []
            except Exception as error:  # the other side has to learn of it, whatever it is
                told, arrays = {"failed": f"{type(error).__name__}: {error}"}, []
            writer.write_with_metadata(wire.pack(arrays), json.dumps(told).encode())

    def _worker(self, generation: int, head: dict[str, Any], data: Any) -> tuple[dict[str, Any], list[Any]]:
        half, width = head.get("bf16", False), self._desk.home.shard.table.weights
        match head["op"]:
            case "pull":
                ticket, ids = Ticket(*head["ticket"]), wire.unpack(data, 0, np.int64)
                found = self._desk.pull(generation, ticket, ids, head["have"])
            case "read":
                found = self._desk.read(wire.unpack(data, 0, np.int64))
            case _:
                places = wire.unpack(data, 2, np.int32 if head["form"] == "places" else np.uint8)
                dense = thicken(Thin(head["form"], wire.unpack(data, 0, np.float32), places), head["entries"])
                rows = wire.unpack(data, 1, np.int16 if half else np.float32)
                if half:
                    rows = wire.from_bf16(rows)
                self._desk.push(generation, Ticket(*head["ticket"]), dense, rows.reshape(-1, width))
                return {}, []
        weights = wire.to_bf16(found.weights) if half else found.weights
        told = {"version": found.version, "dense": found.dense is not None, "bf16": half}
        return told, [weights, found.dense] if found.dense is not None else [weights]

    def _order(self, generation: int, head: dict[str, Any], _: Any) -> tuple[dict[str, Any], list[Any]]:
        match head["op"]:
            case "apply":
                command = read_apply(head)
                return {"version": command.version, "norm": self._desk.apply(generation, command)}, []
            case "drop":
                self._desk.drop(generation, head["gradient"])
                return {}, []
            case other:
                self._desk.check(generation)
                return self._actions[other](head), []

    def do_get(self, context: Any, ticket: Any) -> Any:
        try:
            ids = np.array(json.loads(ticket.ticket)["ids"], np.int64)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise fl.FlightServerError(f'a ticket is {{"ids": [64-bit ids]}}: {error}') from None
        found = self._desk.read(ids)
        width = self._desk.home.shard.table.weights
        weights = pa.FixedSizeListArray.from_arrays(pa.array(found.weights.reshape(-1)), width)
        return fl.RecordBatchStream(pa.table({"id": pa.array(ids), "weights": weights}))

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        return [(name, "takes and gives a JSON object") for name in self._actions]

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        if action.type not in self._actions:
            raise fl.FlightServerError(f"no action {action.type!r}; there are {', '.join(self._actions)}")
        body = action.body.to_pybytes() if action.body is not None else b""
        asked = json.loads(body or b"{}")
        if action.type != "statistics":
            self._security.check(asked)
        told = self._actions[action.type](asked)
        yield fl.Result(json.dumps(told).encode())

    def _statistics(self, _: dict[str, Any]) -> dict[str, Any]:
        home = self._desk.home
        return {"version": home.version, "ids": home.ids, "bytes": home.bytes, "generation": self._desk.generation}
