"""A process of the cluster: a shard's service, a worker, or both. It knows nothing of Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from paceline.assembly import make_replica, make_shard
from paceline.cluster.office import RemoteOffice
from paceline.cluster.spec import NodeSpec
from paceline.exchange.desk import Desk, Superseded
from paceline.exchange.direct import DirectRoute
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.service import ShardService
from paceline.exchange.shards import FarShard, NearShard, PeerLost, ShardWay
from paceline.params.dense import slices
from paceline.runtimes.compute import Replica
from paceline.runtimes.coordinator import Stopped
from paceline.runtimes.local import settle_thread, work

_AGAIN = 1.0  # seconds until a worker that lost its way to a shard tries again


class Node:
    """One process. `start` serves the shard, `begin` starts a generation's worker; both may be called again."""

    def __init__(self, spec: NodeSpec, host: str = "127.0.0.1") -> None:
        self.spec, self._host = spec, host
        self._config = spec.job()
        self._desk: Desk | None = None
        self._service: ShardService | None = None
        self._replicas: list[Replica] = []
        self._turn = threading.Semaphore(1)
        self._generation = -1
        self._ended = threading.Event()
        self.carried: dict[str, int] = {}
        self._lock = threading.Lock()

    def start(self) -> str | None:
        """Serve the shard if there is one; its address."""
        if self.spec.shard is None:
            return None
        if self._service is None:
            self._desk = Desk(DirectRoute(make_shard(self._config, self.spec.shard, self.spec.shards)))
            actions = {"reset": self._reset, "counted": self._counted, "die": self._die}
            self._service = ShardService(self._desk, self.spec.security, actions, self._host)
        return f"{self._host}:{self._service.port}"

    def begin(self, generation: int, shards: list[str], office: str) -> None:
        """Start the worker of a generation in threads of its own; those of the one before end by themselves."""
        self._generation = generation
        if self.spec.worker is None:
            return
        while len(self._replicas) <= self.spec.ahead:
            self._replicas.append(make_replica(self._config))
        for number, replica in enumerate(self._replicas):
            name = f"worker-{self.spec.worker}" + ("" if number == 0 else f"+{number}")
            thread = threading.Thread(
                target=self._seat, args=(name, number > 0, replica, generation, shards, office), name=name, daemon=True
            )
            thread.start()

    def hold(self) -> None:
        """Blocks until `end`: whoever waits for its answer learns when the process dies."""
        self._ended.wait()

    def end(self) -> None:
        """Stop serving."""
        self._generation = -1
        self._ended.set()
        if self._service is not None:
            self._service.shutdown()
            self._service = None

    # --- the shard ----------------------------------------------------------------------------------------------

    def _reset(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A fresh shard for a generation."""
        assert self._desk is not None
        assert self.spec.shard is not None
        shard = make_shard(self._config, self.spec.shard, self.spec.shards)
        self._desk.begin(asked["generation"], DirectRoute(shard))
        return {"version": shard.version}

    def _counted(self, _: dict[str, Any]) -> dict[str, Any]:
        assert self._desk is not None
        ages, _norms = self._desk.home.take_counted()
        return {"ages": ages.tolist()}

    def _die(self, _: dict[str, Any]) -> dict[str, Any]:
        """For people who want to see what happens (`inject`)."""
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    # --- the worker ---------------------------------------------------------------------------------------------

    def _seat(self, name: str, ahead: bool, replica: Replica, generation: int, shards: list[str], office: str) -> None:
        """A worker's life in one generation: it comes again while it is only cut off."""
        settle_thread()
        while generation == self._generation:
            try:
                self._work(name, ahead, replica, generation, shards, office)
            except (Stopped, Superseded):
                return
            except PeerLost:
                if self._ended.wait(_AGAIN):
                    return

    def _work(self, name: str, ahead: bool, replica: Replica, generation: int, shards: list[str], office: str) -> None:
        spec, width = self.spec, replica.layout.width
        ways: list[ShardWay] = []
        far = RemoteOffice(spec.security, office, name, ahead, generation, replica.statistics)
        try:
            for number, address in enumerate(shards):
                if number == spec.shard and self._desk is not None:
                    ways.append(NearShard(self._desk, generation))
                else:
                    ways.append(FarShard(spec.security, address, generation, width, spec.bf16))
            route = ShardedRoute(ways, self._sizes(replica), width)
            work(name, far, route, replica, _Turn(self._turn, spec.slow))
        except (Stopped, Superseded, PeerLost):
            raise
        except BaseException as error:
            far.fail(error)
            raise Stopped from error
        finally:
            far.close()
            for way in ways:
                way.close()

    def _sizes(self, replica: Replica) -> list[int]:
        sizes = {name: p.numel() for name, p in replica.model.named_parameters()}
        return [sum(sizes[n] for n in names) for names in slices(replica.model, self.spec.shards)]


class _Turn(AbstractContextManager[None]):
    """One computes at a time in a process; a worker that has to be slow sleeps at the end of its turn."""

    def __init__(self, turn: threading.Semaphore, slow: float) -> None:
        self._turn, self._slow = turn, slow
        self._started = 0.0

    def __enter__(self) -> None:
        self._turn.acquire()
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._slow > 1.0:
            time.sleep((self._slow - 1.0) * (time.monotonic() - self._started))
        self._turn.release()
