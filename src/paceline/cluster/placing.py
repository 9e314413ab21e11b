"""Ray: a place for every process, the processes as actors, and what to do when one is gone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from paceline.cluster.chief import Chief
from paceline.cluster.node import Node
from paceline.cluster.spec import NodeSpec
from paceline.clusterconfig import ClusterConfig
from paceline.errors import ConfigError, PacelineError, TrainingError
from paceline.exchange.security import Security

_PATIENCE = 120.0  # seconds for the first processes to find a place
_ROOM = 3.0  # seconds in which Ray finds room on a machine that has it
SLOW = ray.exceptions.GetTimeoutError
GONE = (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError)


def _host(local: bool) -> str:
    """Where this process is to be reached; on one machine nobody else may."""
    found: str = "127.0.0.1" if local else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return found


class NodeActor(Node):
    """A node that says where it is."""

    def __init__(self, local: bool, spec: NodeSpec) -> None:
        super().__init__(spec, _host(local))


class ChiefActor(Chief):
    """A coordinator that says where it is."""

    def __init__(self, local: bool, config: str, base: str, run_dir: str, security: Security) -> None:
        super().__init__(config, base, run_dir, security, _host(local))


@dataclass(frozen=True, slots=True)
class Placed:
    """An actor. hold: fails when its process dies."""

    name: str
    actor: Any
    hold: Any


class Cluster:
    """The actors of one job. Use as a context manager: they end with it, and so does a Ray that it started itself."""

    def __init__(self, config: ClusterConfig, nodes: list[NodeSpec], chief: tuple[str, str, str, Security]) -> None:
        self._config, self._specs, self._chief = config, nodes, chief
        self._own = False
        self._group: PlacementGroup | None = None
        self._rooms: dict[str, tuple[PlacementGroup | None, int]] = {}  # by process: a group and its bundle there
        self._leaving: dict[str, Placed] = {}
        self._hired: dict[str, NodeSpec] = {}
        self._elsewhere: dict[str, str] = {}  # Ray nodes of processes that were placed anew
        self.nodes: dict[str, Placed] = {}
        self.chief: Placed | None = None

    def __enter__(self) -> Cluster:
        try:
            self._connect()
            self._place()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            for placed in (*self.nodes.values(), *self._leaving.values(), *([self.chief] if self.chief else [])):
                ray.kill(placed.actor)
            for group in {id(g): g for g in (self._group, *(g for g, _ in self._rooms.values())) if g}.values():
                remove_placement_group(group)
        if self._own:
            ray.shutdown()

    def _connect(self) -> None:
        if ray.is_initialized():
            return
        address = self._config.address
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == "local":
            needed = sum(b["CPU"] for b in self._bundles())
            cpus = max(int(-(-needed // 1)), os.cpu_count() or 1)  # a person may want more processes than cores
            options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            options |= {"object_store_memory": 100 << 20}  # nothing of ours goes through it
        else:
            options["address"] = address
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"cluster.address: no Ray cluster at {address!r} ({str(error).splitlines()[0]}); start one"
                " (docs/running-on-a-cluster.md), or use address: local"
            ) from error
        self._own = True

    @property
    def needs(self) -> dict[str, float]:
        """What Ray reserves for each process but the coordinator."""
        each = {"CPU": self._config.resources.cpus}
        if self._config.resources.gpus:
            each["GPU"] = self._config.resources.gpus
        return each

    def _bundles(self) -> list[dict[str, float]]:
        return [{"CPU": 1}, *(self.needs for _ in self._specs)]

    def _place(self) -> None:
        bundles = self._bundles()
        self._group = placement_group(bundles, strategy="SPREAD")
        if not self._group.wait(_PATIENCE):
            resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            there = {k: v for k, v in resources.items() if k in ("CPU", "GPU")}
            needed = {k: sum(b.get(k, 0) for b in bundles) for k in ("CPU", "GPU")}
            raise ConfigError(
                f"cluster: {len(bundles)} processes need {needed}, the Ray cluster has {there}; lower cluster.nodes or"
                " cluster.resources, or add machines"
            )
        names = ["coordinator", *(spec.name for spec in self._specs)]
        self._rooms = {name: (self._group, bundle) for bundle, name in enumerate(names)}
        self.chief = self._start("coordinator", {"CPU": 1}, ChiefActor, self._chief)
        for spec in self._specs:
            self.hire(spec)

    def reserve(self, name: str) -> None:
        """Ask for room for one more process. Who had some from the start has it still; on a Ray of its own, where
        processes may be more than cores, there always is."""
        if name not in self._rooms:
            local = self._config.address == "local" or not any(self.needs.values())
            self._rooms[name] = (None if local else placement_group([self.needs]), 0)

    def has_room(self, name: str) -> bool:
        """Whether Ray has found the room that was asked for."""
        group, _ = self._rooms[name]
        return group is None or group.wait(0)

    def hire(self, spec: NodeSpec) -> None:
        """Start a process in its room."""
        self._hired[spec.name] = spec
        self.nodes[spec.name] = self._start(spec.name, self.needs, NodeActor, (spec,))

    def dismiss(self, name: str) -> None:
        """A process is not one of the job any more; it lives until `end`."""
        self._leaving[name] = self.nodes.pop(name)

    def end(self, name: str) -> None:
        """End a process that was dismissed, or that never started, for good."""
        if name in self._leaving:
            ray.kill(self._leaving.pop(name).actor)
        group, _ = self._rooms[name]
        if group is not self._group or group is None:
            del self._rooms[name]
            if group is not None:
                remove_placement_group(group)

    def _start(self, name: str, needs: dict[str, float], kind: type, arguments: tuple[Any, ...]) -> Placed:
        group, bundle = self._rooms[name]
        options: dict[str, Any] = {"num_cpus": 0, "num_gpus": needs.get("GPU", 0)}
        if group is not None:
            strategy: Any = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
            if name in self._elsewhere:
                strategy = NodeAffinitySchedulingStrategy(self._elsewhere[name], soft=True)
            options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "scheduling_strategy": strategy}
        options |= {"max_restarts": -1, "max_task_retries": 0, "max_concurrency": 16}
        actor: Any = ray.remote(kind).options(**options).remote(self._config.address == "local", *arguments)
        return Placed(name, actor, actor.hold.remote())

    def move(self, name: str, away: str, first: str) -> str | None:
        """Place a process anew on another machine than `away`, on `first` if that has room: which one it is, or None
        if none has room. The old process is ended, as soon as it can be reached."""
        machines: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        needs = {"CPU": 1.0} if name == "coordinator" else self.needs
        for machine in sorted(machines, key=lambda m: m["NodeManagerAddress"] != first):
            address = machine["NodeManagerAddress"]
            if address == away or not _has_room(needs, address):
                continue
            self._elsewhere[name] = machine["NodeID"]
            if name == "coordinator":
                assert self.chief is not None
                ray.kill(self.chief.actor)
                self.chief = self._start(name, needs, ChiefActor, self._chief)
            else:
                ray.kill(self.nodes[name].actor)
                self.nodes[name] = self._start(name, needs, NodeActor, (self._hired[name],))
            return str(address)
        return None

    def has_place(self) -> bool:
        """Whether there is a machine for every process; if one is lost, Ray looks for another."""
        assert self._group is not None
        return bool(ray.util.placement_group_table(self._group)["state"] == "CREATED")

    def again(self, name: str) -> Placed:
        """The actor after Ray has started its process again."""
        old = self.chief if name == "coordinator" else self.nodes[name]
        assert old is not None
        placed = Placed(name, old.actor, old.actor.hold.remote())
        if name == "coordinator":
            self.chief = placed
        else:
            self.nodes[name] = placed
        return placed


class Unanswered(TrainingError):
    """An actor has not answered for as long as a run waits."""


def failure(reference: Any) -> PacelineError | None:
    """What a finished call raised in its process; None if it was answered, or its process is gone."""
    try:
        ray.get(reference, timeout=0)
    except ray.exceptions.RayTaskError as error:
        return error.cause if isinstance(error.cause, PacelineError) else TrainingError(_last_line(error))
    except GONE:
        return None
    return None


def _last_line(error: BaseException) -> str:
    """Of a traceback from another process: the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def is_there(reference: Any) -> bool:
    """Whether a call was answered, by an actor that was there."""
    try:
        ray.get(reference, timeout=0)
    except GONE:
        return False
    return True


def kill(placed: Placed) -> None:
    """Kill an actor's process; Ray starts it again."""
    ray.kill(placed.actor, no_restart=False)


def watch_again(cluster: Cluster) -> None:
    """Hold on to those processes again that have died and were started again."""
    for name, placed in list(cluster.nodes.items()):
        if finished([placed.hold], 0):
            cluster.again(name)


def insist(ask: Callable[[], Any], patience: float, waiting: Callable[[], None]) -> Any:
    """The answer of an actor whose process may just be starting again, or on a machine that Ray has not yet found lost.
    waiting: called every second without an answer. Raises Unanswered after `patience` seconds, TrainingError with the
    cause if the process cannot be started."""
    until = time.monotonic() + patience
    asked = ask()
    while True:
        try:
            return ray.get(asked, timeout=1.0)
        except ray.exceptions.GetTimeoutError:
            waiting()
        except GONE as error:
            if getattr(error, "actor_init_failed", False):  # Ray starts such an actor no more
                raise TrainingError(f"it cannot be started there: {_last_line(error)}") from None
            time.sleep(0.1)
            asked = ask()
        if time.monotonic() > until:
            raise Unanswered("no answer")


def finished(references: list[Any], seconds: float) -> list[Any]:
    """Those that are done or have failed, within `seconds`."""
    ready, _ = ray.wait(references, num_returns=1, timeout=seconds)
    return list(ready)


def answer(reference: Any, seconds: float | None = None) -> Any:
    """What a call returned. Raises one of GONE if its process died, or has not answered after so long."""
    return ray.get(reference, timeout=seconds)


def _has_room(needs: dict[str, float], address: str) -> bool:
    """Whether a machine has room for one more process."""
    group = placement_group([{**needs, f"node:{address}": 0.001}])
    try:
        return bool(group.wait(_ROOM))
    finally:
        remove_placement_group(group)
