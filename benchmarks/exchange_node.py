"""A node of `benchmarks/exchange.py`: a shard and a worker, told by lines of JSON what to do.

What it sends is counted twice: bytes of arrays by kind, as metrics count them; and, where its machine is a network
namespace of its own, what its interface sent, with everything that gRPC, gloo, TCP, IP and Ethernet add.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from exchange_jobs import SAMPLES, Job, batch_of

from paceline.exchange.cost import Exchange, Load, push_pull
from paceline.exchange.desk import Desk
from paceline.exchange.direct import DirectRoute, Ticket
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.group import connect, open_store
from paceline.exchange.security import Security
from paceline.exchange.service import ShardService
from paceline.exchange.shards import FarShard, NearShard
from paceline.pace import Apply, Part
from paceline.params.dense import DenseBlock, make_optimizer, slice_sizes, slices
from paceline.params.shard import Shard
from paceline.params.sparse import Adagrad
from paceline.params.table import Table
from paceline.runtimes.collective import Collective
from paceline.runtimes.compute import Replica
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.local import settle_thread

INTERFACE = Path("/sys/class/net/eth0/statistics/tx_bytes")


class Node:
    """wired: whether the machine's interface is this node's alone."""

    def __init__(self, rank: int, nodes: int, address: str, wired: bool) -> None:
        self.rank, self.nodes, self.address, self.wired = rank, nodes, address, wired
        self._store = open_store(address) if rank == 0 else None
        self._generation, self._security = 0, Security()
        self._desk: Desk | None = None
        self._service: ShardService | None = None

    def hello(self) -> dict[str, Any]:
        """Where others find this node's store and its shard."""
        if self.wired:  # one packet at a time, as cards send them: else headers of several are counted once
            subprocess.run(["ip", "link", "set", "dev", "eth0", "gso_max_segs", "1"], check=True)
        self._desk = Desk(self._route(Job("lr", 1, 1, 0)))
        self._service = ShardService(self._desk, self._security, {}, host=self.address)
        port = None if self._store is None else [self.address, self._store.port]
        return {"store": port, "flight": f"{self.address}:{self._service.port}"}

    def begin(self, job: dict[str, Any], way: str, store: list[Any], flights: list[str]) -> dict[str, Any]:
        """A job and a way to exchange its rows."""
        self._generation += 1
        self.job, self.way, self.version = Job(**job), way, 0
        route, model = self._route(self.job), self.job.build()
        self._replica = Replica(model, self.job.layout(model), "fp32")
        self._apply = route.apply
        auto = self.job.plan(self.nodes, "auto")
        self._shape = auto.shape
        if way == "push_pull":
            assert self._desk is not None
            self._desk.begin(self._generation, route)
            self._flights = flights
            modes = dict.fromkeys((p.name for p in model.parts()), "push_pull")
        else:
            exchanges: dict[str, Exchange] = {"rows": "rows", "substitute": "substitute", "auto": "auto"}
            plan = self.job.plan(self.nodes, exchanges[way])
            name = f"job-{self._generation}"
            self._group = connect(store[0], store[1], name, self.rank, self.nodes, address=self.address)
            layout = self.job.layout(model)
            self._engine = Collective(self._group, plan, model, layout, route, self._replica)
            modes = {part: str(mode) for part, mode in plan.modes.items()}
        return {"modes": modes}

    def open(self) -> dict[str, Any]:
        """Streams to all shards, once all serve the generation."""
        if self.way == "push_pull":
            assert self._desk is not None
            width = self._replica.layout.width
            ways = [
                NearShard(self._desk, self._generation)
                if rank == self.rank
                else FarShard(self._security, address, self._generation, width, False)
                for rank, address in enumerate(self._flights)
            ]
            self._worker = ShardedRoute(ways, slice_sizes(self._replica.model, self.nodes), width)
        self._wire = self._sent_by_interface()
        return {}

    def step(self) -> dict[str, Any]:
        number = self.version * self.nodes + self.rank
        batch = batch_of(self.job, number)
        if self.way != "push_pull":
            self._engine.step(Lease(number, 0, self.version, batch))
            sent, told = self._engine.sent, self._engine.predicted
            self._found = {**sent.ids, **sent.values}
            self._promised = {**told.ids, **told.values}
            return {}
        pulled = self._worker.pull(batch.flat_ids(), self._replica.flat, Ticket(number, 0, self.version))
        _, gradient = self._replica.gradient(batch, pulled)
        self._worker.push(number, gradient)
        carried = self._worker.carried()
        distinct = carried.pop("distinct")
        told = push_pull(self._shape, Load(SAMPLES, batch.flat_ids().shape[0], distinct))
        carried.pop("fresh")
        self._found = carried
        self._promised = {**told.ids, **told.values}
        return {}

    def apply(self) -> dict[str, Any]:
        """The update, and what the step took."""
        first, self.version = self.version * self.nodes, self.version + 1
        parts = tuple(Part(first + i, 1 / self.nodes, 1.0, self.version - 1) for i in range(self.nodes))
        command = Apply(self.version, parts, None, self.version * self.nodes * SAMPLES)
        if self.way == "push_pull":
            assert self._desk is not None
            self._desk.apply(self._generation, command)
        else:
            self._apply(command)
        before, self._wire = self._wire, self._sent_by_interface()
        return {"sent": self._found, "predicted": self._promised, "wire": self._wire - before}

    def end(self) -> dict[str, Any]:
        if self.way == "push_pull":
            self._worker.close()
        else:
            self._group.close()
        return {}

    def _route(self, job: Job) -> DirectRoute:
        model = job.build()
        names = slices(model, self.nodes)[self.rank]
        dense = DenseBlock(model, make_optimizer("sgd", {"lr": 0.1}, model, names), names)
        table = Table(np.full(job.layout(model).width, 0.01, np.float32), Adagrad(), 0)
        return DirectRoute(Shard(table, dense, "global_mean"))

    def _sent_by_interface(self) -> int:
        return int(INTERFACE.read_text()) if self.wired else 0


def main() -> None:
    rank, nodes, address, wired = sys.argv[1:]
    settle_thread()
    node = Node(int(rank), int(nodes), address, wired == "wired")
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(getattr(node, asked.pop("op"))(**asked)), flush=True)


if __name__ == "__main__":
    main()
