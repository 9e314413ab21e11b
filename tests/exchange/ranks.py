"""Processes that play ranks, and the jobs that they run: the same training by a group of ranks and by one route."""

from __future__ import annotations

import multiprocessing as mp
import os
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from paceline.assembly import sparse_optimizer
from paceline.batch import Bag, Batch, Cursor, Span
from paceline.exchange.cost import Load, Roles
from paceline.exchange.desk import Desk
from paceline.exchange.dictionary import CAPACITY
from paceline.exchange.direct import DirectRoute, Ticket
from paceline.exchange.flight import ShardedRoute
from paceline.exchange.group import connect, open_store
from paceline.exchange.security import Security
from paceline.exchange.service import ShardService
from paceline.exchange.shards import FarShard, NearShard
from paceline.models.base import Inputs, Normalised
from paceline.models.registry import build_model
from paceline.pace import Apply, Part
from paceline.params.dense import DenseBlock, make_optimizer, slice_sizes, slices
from paceline.params.feedback import Feedback, Thinning
from paceline.params.shard import Shard
from paceline.params.table import Table
from paceline.runtimes.collective import Collective, make_plan
from paceline.runtimes.compute import Layout, Replica, sent
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.local import settle_thread
from paceline.runtimes.serving import Server

LOAD = Load(16, 200, 120)
SECURITY = Security()


@dataclass(frozen=True)
class Case:
    """A job. bags: how each bag field weighs its ids; sizes: of an update's local batches; last: of the last update's;
    roles: who holds shards and workers (None: everybody both)."""

    model: str = "deepfm"
    options: dict = field(default_factory=dict)
    exchange: str = "auto"
    singles: int = 3
    bags: tuple[str, ...] = ("sum", "mean", "any")
    dense: int = 2
    normalise: str = "none"
    precision: str = "fp32"
    updates: int = 20
    sizes: tuple[int, ...] = (16, 16, 16, 7)
    last: tuple[int, ...] = (16, 5)
    optimizer: str = "adagrad"
    reverse: bool = False
    roles: Roles | None = None
    modes: dict | None = None  # instead of the plan's own
    keep: float = 1.0  # share of each dense gradient that leaves
    sums: float = 1.0  # share of a sample's partial sums that is sent
    huge: int = -1  # the number of a gradient whose dense inputs are too large
    capacity: int = CAPACITY  # of the lists of ids
    load: Load = LOAD  # that the plan is made for


def batches(case: Case) -> list[list[Batch]]:
    """Of every update."""
    rng = np.random.default_rng(5)
    span = Span(0, Cursor(), Cursor(), np.zeros((3, 0)))
    found = []
    for update in range(case.updates):
        made = []
        for size in case.last if update == case.updates - 1 else case.sizes:
            fields = np.arange(case.singles) * 1000
            ids = rng.zipf(1.4, (size, case.singles)).clip(max=200) + fields + update // 4
            bags = []
            for kind in case.bags:
                lengths = rng.integers(0, 9, size)
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                weights = np.ones(offsets[-1], np.float32)
                if kind == "mean":
                    weights = np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32)
                if kind == "any":
                    weights = rng.uniform(0.5, 2, offsets[-1]).astype(np.float32)
                own = rng.zipf(1.4, offsets[-1]).clip(max=300) + 1000 * rng.integers(0, case.singles + 2)
                bags.append(Bag(own, offsets, weights))
            dense = rng.standard_normal((size, case.dense)).astype(np.float32)
            if sum(map(len, found)) + len(made) == case.huge:
                dense *= np.float32(1e38)
            if case.reverse:
                ids, bags = np.ascontiguousarray(ids[:, ::-1]), bags[::-1]
            labels = (ids.sum(1) % 3 == 0).astype(np.float32)
            made.append(Batch(labels, ids, tuple(bags), dense, None, span, span))
        found.append(made)
    return found


def make_model(case: Case):
    torch.manual_seed(3)
    names = tuple(f"f{i}" for i in range(case.singles + len(case.bags)))
    inputs = Inputs(names, case.dense, case.normalise)
    model = build_model(case.model, case.options, inputs)
    return Normalised(model, inputs) if case.normalise != "none" and case.dense else model


def thinning(case: Case) -> Thinning | None:
    return None if case.keep == 1 else Thinning(case.keep, 7, 8)


def make_feedback(case: Case, model) -> Feedback | None:
    made = thinning(case)
    return None if made is None else Feedback([p.numel() for p in model.parameters()], made)


def make_route(case: Case, shard: int, shards: int) -> DirectRoute:
    model = make_model(case)
    bounds = np.concatenate([np.full(p.width, max(p.std, 0.05) * 3**0.5, np.float32) for p in model.parts()])
    table = Table(bounds, sparse_optimizer(case.optimizer, {"lr": 0.05}), 11)
    names = slices(model, shards)[shard]
    dense = DenseBlock(model, make_optimizer(case.optimizer, {"lr": 0.01}, model, names), names)
    return DirectRoute(Shard(table, dense, "global_mean"))


def command(version: int, numbers: list[int], sizes: list[int]) -> Apply:
    parts = tuple(Part(n, size / sum(sizes), 1.0, version - 1) for n, size in zip(numbers, sizes, strict=True))
    return Apply(version, parts, None, version * 64)


def state(route: DirectRoute | None) -> dict:
    """What a shard holds: {id: its weights, slots and clock}, the dense slice and its slots."""
    if route is None:
        return {"rows": {}, "dense": [], "slots": []}
    rows = {}
    for block in route.shard.table.blocks():
        for key, weights, slots, clock in zip(block.ids, block.weights, block.slots, block.clocks, strict=True):
            rows[int(key)] = np.concatenate([weights, slots]), clock
    slots = route.shard.dense.slots()[0]
    return {"rows": rows, "dense": route.shard.dense.flat.numpy(), "slots": [t.numpy() for t in slots.values()]}


def train_alone(case: Case) -> dict:
    """One shard with all rows, one worker, push and pull."""
    route = make_route(case, 0, 1)
    model = make_model(case)
    layout = Layout(model.parts(), case.singles, len(case.bags))
    replica = Replica(model, layout, case.precision)
    feedback = make_feedback(case, model)
    number, losses = 0, []
    for version, update in enumerate(batches(case), 1):
        first = number
        for batch in update:
            loss, gradient = replica.gradient(batch, route.pull(batch.flat_ids(), replica.flat))
            route.push(number, sent(gradient, feedback, version - 1))
            losses.append((loss, gradient.norm()))
            number += 1
        route.apply(command(version, list(range(first, number)), [b.samples for b in update]))
    held = None if feedback is None else feedback.state().numpy()
    return {"held": held, "losses": losses, **state(route)}


def train_together(group, case: Case, die: tuple[int, int] | None = None) -> dict:
    """The same by `group`. die: (rank, step) of a sudden death."""
    roles = case.roles or Roles(tuple(range(group.size)), tuple(range(group.size)))
    model = make_model(case)
    layout = Layout(model.parts(), case.singles, len(case.bags))
    plan = make_plan(model, layout, case.dense, roles, case.load, case.exchange, thinning(case), case.sums)
    if case.modes is not None:
        plan = replace(plan, modes=case.modes)
    shard = roles.shards.index(group.rank) if group.rank in roles.shards else None
    route = None if shard is None else make_route(case, shard, len(roles.shards))
    replica = Replica(model, layout, case.precision) if group.rank in roles.workers else None
    feedback = None if replica is None else make_feedback(case, model)
    if replica is not None:
        replica.feedback = feedback
    engine = Collective(group, plan, model, layout, route, replica, case.capacity)
    place = roles.workers.index(group.rank) if replica is not None else None
    number, steps, losses, counted = 0, 0, {}, []
    for version, update in enumerate(batches(case), 1):
        first = number
        for start in range(0, len(update), len(roles.workers)):
            if die == (group.rank, steps):
                os._exit(9)
            mine = None if place is None or start + place >= len(update) else update[start + place]
            own = number + start + (place or 0)
            found = engine.step(None if mine is None else Lease(own, 0, version - 1, mine))
            assert (found is None) == (mine is None)
            if found is not None:
                losses[own] = found
            counted.append((engine.sent, engine.predicted))
            steps += 1
        number += len(update)
        if route is not None:
            route.apply(command(version, list(range(first, number)), [b.samples for b in update]))
    statistics = None if replica is None else replica.statistics.numpy()
    held = None if feedback is None else feedback.state().numpy()
    return {"held": held, "losses": losses, "counted": counted, "plan": plan, "statistics": statistics, **state(route)}


def step_once(group, case: Case) -> dict:
    """The first step of a job in which rank 0 has a worker: each shard's sums as they were and as they were sent, and
    the gradients that came of it."""
    roles = Roles(tuple(range(group.size)), (0,))
    model = make_model(case)
    layout = Layout(model.parts(), case.singles, len(case.bags))
    plan = make_plan(model, layout, case.dense, roles, LOAD, case.exchange, None, case.sums)
    route = make_route(case, group.rank, group.size)
    replica = Replica(model, layout, case.precision) if group.rank == 0 else None
    engine = Collective(group, plan, model, layout, route, replica)
    seen, masked, backward = {}, Server.masked, Server.backward

    def watch_masked(self, job, segments, share):
        found = masked(self, job, segments, share)
        seen["mask"], seen["sums"] = job.mask.chosen.clone(), job.sums.detach().clone()
        seen["segments"], seen["weights"] = segments, job.pulled.weights.copy()
        return found

    def watch_backward(self, job, rows, sums):
        seen["back"] = sums.clone()
        found = backward(self, job, rows, sums)
        seen["gradients"], seen["cells"] = job.gradients.copy(), job.cells
        return found

    Server.masked, Server.backward = watch_masked, watch_backward
    try:
        batch = batches(case)[0][0]
        loss = engine.step(Lease(0, 0, 0, batch) if replica is not None else None)
    finally:
        Server.masked, Server.backward = masked, backward
    return {**seen, "loss": loss, "counted": (engine.sent, engine.predicted)}


def push_and_pull(group, case: Case) -> dict:
    """The same by push and pull between the ranks, over Arrow Flight. carried: of each update's gradient of this rank,
    bytes that went over the network."""
    desk = Desk(make_route(case, group.rank, group.size))
    desk.begin(1, desk.home)
    service = ShardService(desk, SECURITY, {})
    ports = group.messages({"port": dict.fromkeys(range(group.size), np.array([service.port]).view(np.uint8))})
    model = make_model(case)
    replica = Replica(model, Layout(model.parts(), case.singles, len(case.bags)), case.precision)
    width, ways = replica.layout.width, []
    for rank, port in sorted(ports.items()):
        address = f"127.0.0.1:{port.copy().view(np.int64)[0]}"
        ways.append(NearShard(desk, 1) if rank == group.rank else FarShard(SECURITY, address, 1, width, False))
    worker, carried = ShardedRoute(ways, slice_sizes(model, group.size), width), []
    for version, update in enumerate(batches(case), 1):
        assert len(update) == group.size
        first = (version - 1) * group.size
        number = first + group.rank
        batch = update[group.rank]
        pulled = worker.pull(batch.flat_ids(), replica.flat, Ticket(number, 0, version - 1))
        worker.push(number, replica.gradient(batch, pulled)[1])
        carried.append(worker.carried())
        barrier(group)
        desk.apply(1, command(version, list(range(first, first + group.size)), [b.samples for b in update]))
    barrier(group)
    worker.close()
    service.shutdown()
    return {"carried": carried, **state(desk.home)}


def barrier(group) -> None:
    """Return when all ranks are here."""
    group.messages({"here": dict.fromkeys(range(group.size), np.zeros(1, np.uint8))})


def _play(pipe) -> None:
    settle_thread()
    while (order := pipe.recv()) is not None:
        function, where, rank, size, args = order
        group = None
        try:
            if where is None:
                answer = function(*args)
            else:
                group = connect(*where, rank, size, timeout=20, address="127.0.0.1")
                answer = function(group, *args)
        except Exception as error:
            answer = error
        finally:
            if group is not None:
                group.close()
        pipe.send(answer)


class Ranks:
    """`count` processes. Groups of them are built one after another."""

    def __init__(self, count: int) -> None:
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(["ranks"])
        self._store = open_store()
        self._groups = 0
        pipes = [context.Pipe() for _ in range(count)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [context.Process(target=_play, args=(theirs,), daemon=True) for _, theirs in pipes]
        for process in self.processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def alone(self, function, *args):
        """function(*args) in the first process."""
        self.pipes[0].send((function, None, 0, 1, args))
        return self._answers(1)[0]

    def together(self, size: int, function, *args) -> list:
        """function(group, *args) in the first `size` processes: their answers, an exception or None (it died)."""
        self._groups += 1
        where = ("127.0.0.1", self._store.port, f"group-{self._groups}")
        for rank in range(size):
            self.pipes[rank].send((function, where, rank, size, args))
        return self._answers(size)

    def _answers(self, size: int) -> list:
        answers = []
        for pipe in self.pipes[:size]:
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(None)
        return answers

    def close(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send(None)
            process.join()
            pipe.close()
