"""A process of the cluster: a shard's service, a worker, or both. It knows nothing of Ray."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline import checkpoint
from paceline.assembly import make_holding, make_replicas, make_shard
from paceline.cluster.remote import RemoteOffice, RemoteRank
from paceline.cluster.spec import NodeSpec
from paceline.cluster.stepping import Meeting, Stepper
from paceline.errors import ClusterLost, PacelineError
from paceline.exchange.desk import Desk, Superseded
from paceline.exchange.direct import DirectRoute
from paceline.exchange.far import tell_error
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.pulse import Pulse, asked
from paceline.exchange.service import ShardService
from paceline.exchange.shards import FarShard, NearShard, PeerLost, ShardWay
from paceline.params.dense import slice_sizes
from paceline.runtimes.compute import Replica
from paceline.runtimes.coordinator import Stopped
from paceline.runtimes.local import settle_thread, work
from paceline.runtimes.turns import Busy, Turn

_AGAIN = 0.2  # seconds until a worker that was sent away or cut off comes again


@dataclass(slots=True, eq=False)
class Line:
    """What a seat or rank talks over: to the office, and to shards (ways) or to other ranks (stepper)."""

    office: RemoteOffice | RemoteRank
    ways: list[ShardWay]
    stepper: Stepper | None = None

    def close(self) -> None:
        """Break off whatever it is doing."""
        self.office.close()
        for way in self.ways:
            way.close()
        if self.stepper is not None:
            self.stepper.give_up()


class Node:
    """One process. `start` serves the shard, `begin` starts a generation's worker; both may be called again."""

    def __init__(self, spec: NodeSpec, host: str = "127.0.0.1") -> None:
        self.spec, self._host = spec, host
        self._config = spec.job()
        self._desk: Desk | None = None
        self._service: ShardService | None = None
        self._replicas: list[Replica] = []
        self._turn = threading.Semaphore(1)
        self._busy = Busy()
        self._generation = -1
        self._ended = threading.Event()
        self._copy: checkpoint.Copy | None = None
        self._pulses: list[Pulse] = []
        self._lines: list[Line] = []
        self._lock = threading.Lock()

    @property
    def _gpus(self) -> float:
        """That Ray reserves for the process."""
        return 0.0 if self._config.cluster is None else self._config.cluster.resources.gpus

    def start(self) -> tuple[str | None, int]:
        """Serve the shard if there is one; its address, and the process's number."""
        if self.spec.shard is None:
            return None, os.getpid()
        if self._service is None:
            self._desk = Desk(DirectRoute(make_shard(self._config, self.spec.shard, self.spec.shards)))
            actions = {
                "reset": self._reset,
                "take": self._take,
                "write": self._write,
                "counted": self._counted,
                "die": self._die,
            }
            self._service = ShardService(self._desk, self.spec.security, actions, self._host)
        return f"{self._host}:{self._service.port}", os.getpid()

    def begin(self, generation: int, shards: list[str], office: str, meeting: tuple[str, int] | None = None) -> None:
        """Start the worker of a generation in threads of its own; those of the one before end by themselves. meeting:
        host and port of the store where groups form, if there are steps that all take part in."""
        self._generation = generation
        for pulse in self._pulses:
            pulse.stop()
        self._cut_off("")
        if not self._replicas:
            count = 1 if self.spec.worker is None else self.spec.ahead + 1
            self._replicas += make_replicas(self._config, count, self._config.device, self._gpus > 0)
        holding = make_holding(self._config, self._replicas[0].model)
        feedback = None if holding is None or self.spec.worker is None else holding.new()
        for replica in self._replicas:
            replica.feedback = feedback
        if meeting is not None:
            thread = threading.Thread(
                target=self._rank, args=(generation, office, meeting), name=f"rank {self.spec.name}", daemon=True
            )
            thread.start()
        works = self.spec.worker is not None
        seats = range(self.spec.ahead + 1) if works else range(0)
        names = [f"worker-{self.spec.worker}" + ("" if i == 0 else f"+{i}") for i in seats]
        if works or meeting is not None:
            self._begin_pulses(generation, shards, office, names)
        if not works:
            return
        for number, (name, replica) in enumerate(zip(names, self._replicas, strict=True)):
            thread = threading.Thread(
                target=self._seat, args=(name, number > 0, replica, generation, shards, office), name=name, daemon=True
            )
            thread.start()

    def _begin_pulses(self, generation: int, shards: list[str], office: str, names: list[str]) -> None:
        """Ask the other shards whether they are there, and tell the office that these seats are, and who is silent."""
        spec, others = self.spec, [address for i, address in enumerate(shards) if i != self.spec.shard]
        peers = Pulse(spec.security, others, "statistics", self._cut_off)
        mine = {"process": spec.name, "generation": generation, "works": bool(names)}

        def told() -> dict[str, object]:
            return {**mine, "places": [*names, f"rank {spec.name}"], "unreachable": peers.silent}

        def heard(answer: dict[str, Any]) -> None:
            with self._lock:
                steppers = [line.stepper for line in self._lines if line.stepper is not None]
            for stepper in steppers:
                if stepper.generation == generation:
                    stepper.give_up(answer["lost"])

        self._pulses = [Pulse(spec.security, [office], "alive", self._cut_off, told, heard), peers]
        for pulse in self._pulses:
            pulse.start()

    def hold(self) -> None:
        """Blocks until `end`: whoever waits for its answer learns when the process dies."""
        self._ended.wait()

    def end(self) -> None:
        """Stop serving."""
        self._generation = -1
        self._ended.set()
        for pulse in self._pulses:
            pulse.stop()
        self._cut_off("")
        if self._service is not None:
            self._service.shutdown()
            self._service = None

    # --- the shard ----------------------------------------------------------------------------------------------

    def _reset(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A fresh shard for a generation, with the state of a snapshot."""
        assert self._desk is not None
        assert self.spec.shard is not None
        index, shards = self.spec.shard, self.spec.shards
        # The old state goes before the new one comes: a shard may fill most of its machine's memory.
        self._desk.begin(asked["generation"], DirectRoute(make_shard(self._config, index, shards)))
        self._copy = None
        shard = make_shard(self._config, index, shards)
        try:
            if asked["snapshot"] is not None:
                checkpoint.restore(checkpoint.read(Path(asked["snapshot"])), shard, index, shards)
        except PacelineError as error:
            return tell_error(error)
        self._desk.begin(asked["generation"], DirectRoute(shard))
        return {"version": shard.version}

    def _take(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Copy what changed since a piece, in its turn among the orders."""
        assert self._desk is not None
        assert self.spec.shard is not None
        since = None if asked["since"] is None else checkpoint.Piece.from_json(asked["since"])
        with self._desk.home.whole():
            self._copy = checkpoint.take(self._desk.home.shard, self.spec.shard, self.spec.shards, since)
        return {"version": self._copy.version, "bytes": self._copy.bytes}

    def _write(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Write the copy, at leisure."""
        assert self._desk is not None
        if asked["generation"] != self._desk.generation:  # held back by a network that was cut: the copy is another's
            return tell_error(ClusterLost(f"generation {asked['generation']} is over"))
        copy, self._copy = self._copy, None
        if copy is None:
            return tell_error(ClusterLost("there is no copy to write"))
        try:
            return checkpoint.write(Path(asked["folder"]), copy).to_json()
        except PacelineError as error:
            return tell_error(error)

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
        """A worker's life in one generation: it comes again until it is told of another one, since the coordinator may
        not be there yet, or this worker be cut off for a while."""
        settle_thread()
        while generation == self._generation and not self._ended.is_set():
            with contextlib.suppress(Stopped, Superseded, PeerLost):
                self._work(name, ahead, replica, generation, shards, office)
            self._ended.wait(_AGAIN)

    def _work(self, name: str, ahead: bool, replica: Replica, generation: int, shards: list[str], office: str) -> None:
        spec, width, thins = self.spec, replica.layout.width, replica.feedback is not None
        ways: list[ShardWay] = []
        for number, address in enumerate(shards):
            if number != spec.shard and asked(spec.security, address, "statistics") is None:
                raise PeerLost(f"shard {number} at {address} does not answer")
        far = RemoteOffice(spec.security, office, name, ahead, generation, replica.statistics, replica.feedback)
        with self._open(Line(far, ways)):
            for number, address in enumerate(shards):
                if number == spec.shard and self._desk is not None:
                    ways.append(NearShard(self._desk, generation))
                else:
                    ways.append(FarShard(spec.security, address, generation, width, spec.bf16, thins))
            route = ShardedRoute(ways, slice_sizes(replica.model, spec.shards), width)
            far.carried = route.carried
            far.busy = self._busy.share
            work(name, far, route, replica, Turn(spec.slow, self._turn, busy=self._busy))

    @contextlib.contextmanager
    def _open(self, line: Line) -> Iterator[None]:
        """While a seat or rank talks over a line: an error of its own is told to the office, and all is closed at the
        end."""
        with self._lock:
            self._lines.append(line)
        try:
            yield
        except (Stopped, Superseded, PeerLost):
            raise
        except BaseException as error:
            line.office.fail(error)
            raise Stopped from error
        finally:
            with self._lock:
                self._lines.remove(line)
            line.close()

    def _rank(self, generation: int, office: str, meeting: tuple[str, int]) -> None:
        """The process's life in steps of one generation."""
        settle_thread()
        spec, replica = self.spec, self._replicas[0]
        worker = None if spec.worker is None else f"worker-{spec.worker}"
        dense, exchange = self._config.log_schema().dense_width, spec.exchange
        where = Meeting(*meeting, self._host, f"generation-{generation}")
        alone = self._gpus >= 1
        while generation == self._generation and not self._ended.is_set():
            with contextlib.suppress(Stopped, Superseded, PeerLost):
                far = RemoteRank(spec.security, office, spec.name, spec.shard, worker, generation, replica.feedback)
                works = spec.worker is not None
                turn = Turn(spec.slow)
                facts = (spec.shards, dense, exchange, generation, turn, alone, self._config.compress)
                stepper = Stepper(where, self._desk, replica, works, *facts)
                with self._open(Line(far, [], stepper)):
                    stepper.run(far)
            self._ended.wait(_AGAIN)

    def _cut_off(self, _: str) -> None:
        """The coordinator or a shard is silent: break off what the seats are doing, so that they try anew."""
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.close()
