"""A job on a cluster, seen from where it was started: processes are placed, watched, and started again."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline.cluster.credentials import read_security
from paceline.cluster.spec import NodeSpec, helper_name, roles
from paceline.cluster.staff import Staff
from paceline.config import JobConfig
from paceline.errors import ConfigError, PacelineError, RunDirError, RunDirInUse, TrainingError
from paceline.rundir import PROCESSES, replace_text
from paceline.watcher import Silent, Watcher

_GIVE_UP = 8  # generations in a row that did not get further than one before them, since something died
_TWICE = 2  # generations in a row that a process could not be reached in, until it is placed anew
_ANSWER = 10.0  # seconds in which the coordinator answers, or a Ray cluster takes a call
_START = 30.0  # seconds in which a process starts


def train_on_cluster(
    config: JobConfig, base: Path, run_dir: Path, resume: bool = False, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Run the job on `config.cluster` and return its last metrics line.

    Whatever process dies, the job goes on: a worker's leases are given to others; if a shard or the coordinator is
    lost, everybody goes back to the last snapshot, which is a new generation. Raises what `paceline.train` raises, and
    ConfigError if Ray is missing or has no room.
    """
    assert config.cluster is not None
    if resume and not run_dir.exists():
        raise RunDirError(f"{run_dir}: there is no run to go on with; check --run-dir, or leave --resume out")
    security = read_security(config.cluster, base)
    _check_inject(config)
    _check_address(config.cluster.address)
    try:
        from paceline.cluster import placing  # Ray: seconds, which a mistake in the job need not cost
    except ImportError as error:
        raise ConfigError(f"cluster: Ray is not installed ({error}); pip install 'paceline[cluster]'") from error
    written = config.to_yaml()
    cluster = config.cluster

    def spec(name: str, shard: int | None, worker: int | None) -> NodeSpec:
        return NodeSpec(
            name,
            written,
            cluster.shards,
            shard,
            worker,
            cluster.ahead,
            cluster.rows == "bf16",
            next((i.factor or 1.0 for i in config.inject if i.slow == f"worker-{worker}"), 1.0),
            security,
            cluster.steps or "auto",
        )

    specs = [spec(*role) for role in roles(cluster.nodes, cluster.servers, cluster.workers)]
    if security.token is not None and config.cluster.steps is not None:
        (watcher or Silent()).note(
            "collectives ask nobody for the token: with strangers in the network, set cluster.exchange=push_pull"
        )
    chief = (written, str(base), str(run_dir.absolute()), security)
    with placing.Cluster(cluster, list(specs), chief) as actors:
        note = (watcher or Silent()).note
        staff = Staff(
            run_dir, specs, lambda k: spec(helper_name(k), None, cluster.nodes + k), actors, placing, note
        )  # fmt: skip
        return _Supervisor(config, run_dir, specs, actors, placing, watcher or Silent(), resume, staff).run()


def _check_address(address: str) -> None:
    """Raise ConfigError if nobody listens there: Ray itself would try for minutes."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, OverflowError, UnicodeError) as error:  # the last: of a name that cannot be a host's
        why = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cluster.address: nobody is to be reached at {address!r} ({why}); start Ray there"
            " (docs/running-on-a-cluster.md), or use address: local"
        ) from None


def _check_inject(config: JobConfig) -> None:
    """Raise ConfigError for a fault of a process that is not there."""
    assert config.cluster is not None
    counts = {"worker": config.cluster.trainers, "shard": config.cluster.shards, "node": config.cluster.nodes}
    for fault in config.inject:
        kind, _, number = (fault.slow or fault.kill or "").partition("-")
        if number and int(number) >= counts[kind]:
            raise ConfigError(f"inject: there is no {kind}-{number}; the cluster has {counts[kind]}, from {kind}-0")


class _Supervisor:
    """One job's watch. placing: the module that knows Ray."""

    def __init__(
        self, config: JobConfig, run_dir: Path, specs: list[NodeSpec], cluster: Any, placing: Any, watcher: Watcher,
        resume: bool, staff: Staff,
    ) -> None:  # fmt: skip
        self._config, self._run_dir = config, run_dir
        self._specs, self._cluster, self._ray = specs, cluster, placing
        self._staff = staff
        self._office, self._shards = "", list[str]()
        self._addresses: dict[str, str] = {}  # of the coordinator's service and the shards', by process
        self._patience = 0.0 if config.cluster is None else config.cluster.patience
        self._meeting: tuple[str, int] | None = None
        self._watcher, self._resume = watcher, resume
        self._goes_on = resume  # until it does
        self._generation = int(time.time())  # above that of any earlier supervisor of the same processes
        self._lost_at: float | None = None
        self._asked: Any = None  # the question for messages that has no answer yet
        self._losses, self._seconds = 0, 0.0  # generations that were lost, and what it took to go on
        self._fruitless, self._furthest = 0, -1
        self._unreachable: Counter[str] = Counter()  # generations in a row in which a process could not be reached
        self._begun: dict[Any, str] = {}  # calls that have a process take part in this generation
        self._told: set[str] = set()  # what was said since the run got further
        self._injected = [(i.kill, i.at) for i in config.inject if i.kill is not None and i.at is not None]

    def run(self) -> dict[str, Any]:
        """Generation by generation until the job has ended."""
        self._staff.begin()
        try:
            return self._generations()
        finally:
            self._staff.end()

    def _generations(self) -> dict[str, Any]:
        while True:
            self._generation += 1
            kind, value = self._one_generation()
            self._relay()
            if kind == "end":
                found: dict[str, Any] = value
                return found
            if kind == "interrupted":
                raise KeyboardInterrupt(value)
            # A coordinator that cannot be reached any more may hold the directory until it finds out itself.
            held = isinstance(value, RunDirInUse) and self._losses > 0
            if kind == "error" and not held:
                raise value
            why, unreachable = value if kind == "lost" else (str(value), ())
            self._lost_at = self._lost_at or time.time()
            self._losses += 1
            self._fruitless += not unreachable and not held
            self._resume = True
            self._note(f"{why}; going on from the last snapshot")
            if self._fruitless >= _GIVE_UP:
                raise TrainingError(f"{_GIVE_UP} times in a row something died before the run got any further: {why}")
            if time.time() - self._lost_at > self._patience:
                raise TrainingError(f"{why}, for {self._patience:g} seconds (cluster.patience); go on with --resume")
            time.sleep(_ANSWER if held else 0)
            self._place_anew([spec for spec in self._specs if self._addresses.get(spec.name) in unreachable])

    def _place_anew(self, away: list[NodeSpec]) -> None:
        """Processes that the others could not reach, again and again, go to machines with room; so does the coordinator
        instead, if it is the one that reaches only few."""
        names = [spec.name for spec in away]
        if len(names) > 1 and len(self._shards) < 2 * len(names):
            names = ["coordinator"]
        self._unreachable = Counter({name: self._unreachable[name] + 1 for name in names})
        for name in names:
            if self._unreachable[name] < _TWICE:
                continue
            old = self._addresses[name].rpartition(":")[0]
            moved = self._cluster.move(name, old, self._office.rpartition(":")[0])
            if moved is not None:
                del self._unreachable[name]
                self._note(f"{name} cannot be reached at {old}: it is placed anew at {moved}")
            else:
                text = f"{name} cannot be reached at {old}, and no other machine has room for it: waiting until it can"
                self._note(f"{text}, {self._patience:g} seconds at most (cluster.patience)")

    def _insist(self, ask: Callable[[], Any], name: str) -> Any:
        """The answer of a process, however long that takes; a person is told why."""
        since = time.monotonic()

        def waiting() -> None:
            if time.monotonic() - since > _START:
                found = "" if self._cluster.has_place() else "; Ray has no machine with room for it"
                limit = f"{self._patience:g} seconds at most (cluster.patience)"
                self._note(f"waiting for {name}, which does not answer{found}, {limit}")

        try:
            return self._ray.insist(ask, self._patience, waiting)
        except self._ray.Unanswered:
            raise TrainingError(
                f"{name} did not answer within {self._patience:g} seconds (cluster.patience); go on with --resume"
            ) from None
        except TrainingError as error:
            raise TrainingError(f"{name}: {error}") from None

    def _begin(self, name: str) -> None:
        """Have a process take part in this generation."""
        begin = self._cluster.nodes[name].actor.begin
        self._begun[begin.remote(self._generation, self._shards, self._office, self._meeting)] = name

    def _refused(self) -> PacelineError | None:
        """Why a process cannot take part, if one has said so that the run cannot do without: one with a shard. Of a
        helper it is told only."""
        for reference in self._ray.finished(list(self._begun), 0) if self._begun else []:
            name = self._begun.pop(reference)
            error: PacelineError | None = self._ray.failure(reference)
            if error is None:
                continue
            if any(spec.name == name and spec.shard is not None for spec in self._specs):
                return type(error)(f"{name}: {error}")
            self._note(f"{name} cannot take part: {error}")
        return None

    def _note(self, text: str) -> None:
        """Say it, once until the run gets further."""
        if text not in self._told:
            self._told.add(text)
            self._watcher.note(text)

    def _one_generation(self) -> tuple[str, Any]:
        cluster = self._cluster
        self._office, _ = self._insist(cluster.chief.actor.start.remote, "the coordinator")
        self._meeting = self._insist(cluster.chief.actor.meeting.remote, "the coordinator")
        self._shards, self._addresses = [], {"coordinator": self._office}
        for spec in self._specs:
            address, _ = self._insist(cluster.nodes[spec.name].actor.start.remote, spec.name)
            if spec.shard is not None:
                self._shards.append(address)
                self._addresses[spec.name] = address
        self._ray.watch_again(cluster)
        self._tell_processes()
        lost = (self._losses, self._seconds, self._lost_at)
        workers = self._staff.workers
        run = cluster.chief.actor.run.remote(self._generation, self._shards, self._resume, lost, workers)
        self._begun.clear()
        for spec in self._specs:
            self._begin(spec.name)
        returning: dict[str, Any] = {}
        while True:
            try:
                found = self._watch(run, returning)
                if found is not None:
                    return found
            except KeyboardInterrupt:
                cluster.chief.actor.interrupt.remote()

    def _watch(self, run: Any, returning: dict[str, Any]) -> tuple[str, Any] | None:
        """What the coordinator's run has come to, if it has within a tenth of a second. returning: processes that were
        lost or came in this generation, with the call that starts them, if they can be in it."""
        cluster, specs = self._cluster, {spec.name: spec for spec in self._specs}
        waiting = {placed.hold: name for name, placed in cluster.nodes.items() if name not in returning}
        ready = self._ray.finished([run, *waiting], 0.1)
        if run in ready:
            try:
                found: tuple[str, Any] = self._ray.answer(run)
                return found
            except self._ray.GONE:
                return "lost", ("the coordinator died", ())
        if (refused := self._refused()) is not None:
            return "error", refused
        for name in [waiting[reference] for reference in ready]:
            returning[name] = None
            if specs[name].shard is not None:
                self._lost_at = self._lost_at or time.time()
                cluster.chief.actor.lose.remote(f"{name} died")
            else:
                self._watcher.note(f"{name} died; it is started again, and others do its work meanwhile")
                returning[name] = cluster.nodes[name].actor.start.remote()
        for name, reference in list(returning.items()):
            if reference is not None and self._ray.finished([reference], 0):
                if not self._ray.is_there(reference):  # it is still being started
                    returning[name] = cluster.nodes[name].actor.start.remote()
                    continue
                cluster.again(name)
                self._begin(name)
                del returning[name]
                self._tell_processes()
        if self._staff.tend(returning):
            self._tell_processes()
        self._relay()
        return None

    def _tell_processes(self) -> None:
        """Write RUN_DIR/processes.json: who runs where, for people."""
        told: dict[str, Any] = {}
        for placed in (self._cluster.chief, *self._cluster.nodes.values()):
            # Who does not answer now keeps its place: readers count the shards.
            address, pid = self._addresses.get(placed.name), None
            with contextlib.suppress(*self._ray.GONE):
                address, pid = self._ray.answer(placed.actor.start.remote(), _ANSWER)
            told[placed.name] = {"address": address, "pid": pid}
        with contextlib.suppress(OSError):
            self._run_dir.mkdir(parents=True, exist_ok=True)
            replace_text(self._run_dir / PROCESSES, json.dumps(told, indent=1) + "\n")

    def _relay(self) -> None:
        """What the run says, to whoever watches."""
        asked, self._asked = self._asked or self._cluster.chief.actor.messages.remote(), None
        try:
            said = self._ray.answer(asked, _ANSWER)
        except self._ray.SLOW:
            self._asked = asked  # an answer that comes later is not lost
            self._note("the coordinator does not answer; waiting until it does, or Ray finds its machine lost")
            return
        except self._ray.GONE:
            return
        for what, values in said:
            if what == "recovered":
                (self._seconds, begun), self._lost_at = values, None
                if self._goes_on:  # with --resume: what lies behind the sample that it goes on from is past
                    self._injected = [(name, at) for name, at in self._injected if at > begun]
                    self._goes_on = False
                continue
            if what == "tick":
                rows = values[0]["rows"]
                if rows > self._furthest:
                    self._furthest, self._fruitless = rows, 0
                    self._unreachable.clear()
                    self._told.clear()
                self._kill_as_asked(rows)
            getattr(self._watcher, what)(*values)

    def _kill_as_asked(self, rows: int) -> None:
        """Carry out `inject`: each once."""
        due = [(name, at) for name, at in self._injected if at <= rows]
        self._injected = [fault for fault in self._injected if fault not in due]
        for name, _ in due:
            for spec in self._specs:
                if name in spec.known_as:
                    self._watcher.note(f"{rows:,} samples: {spec.name} is killed, as asked")
                    self._ray.kill(self._cluster.nodes[spec.name])
            if name == "coordinator":
                self._watcher.note(f"{rows:,} samples: the coordinator is killed, as asked")
                self._ray.kill(self._cluster.chief)
