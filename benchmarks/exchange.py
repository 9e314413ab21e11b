"""Bytes that a worker sends in a step: push and pull, moved rows, and partial sums in their place (DES).

    python benchmarks/exchange.py [--steps 5] [--plot exchange.png]

Every node is a process that holds a shard and computes a batch of 512 samples; all exchange over gloo on this machine.
LR and FM read 8 fields with one id each and 2 bags that hold the rest of 10, 30 or 100 ids a sample; FM (again) and
DeepFM read 26 fields with one id each. Ids are drawn from a vocabulary of 100,000 a field, by a power law. Measured is
what the group counted, beside what the cost rule predicted; 8 nodes are predicted only. Values include dense parameters
and their gradients. Push and pull: what the same nodes send, if each distinct row of another process is pulled and its
gradient pushed. Saved: by partial sums in place of all rows, against push and pull; auto: what the rule would choose.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paceline.batch import Bag, Batch, Cursor, Span
from paceline.exchange.cost import Exchange, Load, Plan, Roles, Sent, push_pull
from paceline.exchange.direct import DirectRoute
from paceline.exchange.group import connect, open_store
from paceline.models.base import Inputs, Model
from paceline.models.registry import build_model
from paceline.params.dense import DenseBlock, make_optimizer, slices
from paceline.params.shard import Shard
from paceline.params.sparse import Adagrad
from paceline.params.table import Table, unique
from paceline.runtimes.collective import Collective, make_plan
from paceline.runtimes.compute import Layout, Replica
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.local import settle_thread

SAMPLES, VOCABULARY, DIM = 512, 100_000, 16


@dataclass(frozen=True, slots=True)
class Job:
    """A model and its ids a sample, of which `bags` fields hold several."""

    model: str
    ids: int
    singles: int
    bags: int

    def build(self) -> Model:
        torch.manual_seed(0)
        options: dict[str, Any] = {} if self.model == "lr" else {"dim": DIM}
        return build_model(self.model, options, Inputs(tuple(f"f{i}" for i in range(self.singles + self.bags)), 0))


JOBS = [Job(model, ids, 8, 2) for model in ("lr", "fm") for ids in (10, 30, 100)]
JOBS += [Job(model, 26, 26, 0) for model in ("fm", "deepfm")]


def batch_of(job: Job, seed: int) -> Batch:
    rng = np.random.default_rng(seed)

    def draw(shape: int | tuple[int, int]) -> Any:
        return (VOCABULARY ** rng.random(shape)).astype(np.int64)  # density 1 / id

    length = (job.ids - job.singles) // job.bags if job.bags else 0
    ids = draw((SAMPLES, job.singles)) + VOCABULARY * np.arange(job.singles)
    offsets = length * np.arange(SAMPLES + 1)
    weights = np.full(SAMPLES * length, 1 / max(length, 1), np.float32)
    bags = tuple(
        Bag(draw(SAMPLES * length) + VOCABULARY * (job.singles + bag), offsets, weights) for bag in range(job.bags)
    )
    span = Span(0, Cursor(), Cursor(), np.zeros((3, 0)))
    labels = (rng.random(SAMPLES) < 0.3).astype(np.float32)
    return Batch(labels, ids, bags, np.zeros((SAMPLES, 0), np.float32), None, span, span)


def load_of(job: Job, steps: int, nodes: int) -> Load:
    """Mean over the batches that are run."""
    ids = [batch_of(job, seed).flat_ids() for seed in range(steps * nodes)]
    return Load(SAMPLES, ids[0].shape[0], float(np.mean([unique(i)[0].shape[0] for i in ids])))


def plan_of(job: Job, nodes: int, load: Load, exchange: Exchange) -> Plan:
    model = job.build()
    roles = Roles(tuple(range(nodes)), tuple(range(nodes)))
    return make_plan(model, Layout(model.parts(), job.singles, job.bags), 0, roles, load, exchange)


def node(port: int, rank: int, nodes: int, steps: int, load: Mapping[Job, Load], out: Any) -> None:
    """All jobs by one rank; sends for each job and exchange the bytes of all steps."""
    settle_thread()
    group = connect("127.0.0.1", port, f"nodes-{nodes}", rank, nodes, address="127.0.0.1")
    found: dict[tuple[Job, Exchange], tuple[Counter[str], Counter[str]]] = {}
    exchanges: tuple[Exchange, ...] = ("rows", "substitute")
    for job in load:
        for exchange in exchanges:
            plan, model = plan_of(job, nodes, load[job], exchange), job.build()
            layout = Layout(model.parts(), job.singles, job.bags)
            names = slices(model, nodes)[rank]
            own = job.build()
            dense = DenseBlock(own, make_optimizer("sgd", {"lr": 0.1}, own, names), names)
            table = Table(np.full(layout.width, 0.01, np.float32), Adagrad(), 0)
            route = DirectRoute(Shard(table, dense, "global_mean"))
            engine = Collective(group, plan, model, layout, route, Replica(model, layout, "fp32"))
            ids, values = Counter[str](), Counter[str]()
            for step in range(steps):
                number = step * nodes + rank
                engine.step(Lease(number, 0, 0, batch_of(job, number)))
                ids.update(engine.sent.ids)
                values.update(engine.sent.values)
            found[job, exchange] = ids, values
    out.send(found)
    group.close()


def measure(nodes: int, steps: int, loads: Mapping[Job, Load]) -> dict[tuple[Job, Exchange], Sent]:
    """Bytes of an average node and step."""
    store, context = open_store(), mp.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(nodes)]
    started = [
        context.Process(target=node, args=(store.port, rank, nodes, steps, loads, pipes[rank][1]))
        for rank in range(nodes)
    ]
    for process in started:
        process.start()
    answers = [receiving.recv() for receiving, _ in pipes]
    for process in started:
        process.join()
    return {
        key: Sent(*({kind: sum(a[key][i][kind] for a in answers) / nodes / steps for kind in ids} for i, ids in
                    enumerate(answers[0][key])))
        for key in answers[0]
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--nodes", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--plot", type=Path, default=None)
    options = parser.parse_args()
    print(f"bytes a worker sends in a step of {SAMPLES} samples, in 1,000; m: measured, p: predicted")
    print(
        f"{'model':7s}{'ids':>4s}{'nodes':>6s} | {'push/pull':>15s} | {'rows m':>8s}{'p':>8s}{'ids m':>7s} |"
        f" {'sums m':>8s}{'p':>8s}{'ids m':>7s}{'p':>7s} | {'saved':>6s}{'+ ids':>7s} | auto"
    )
    lines: dict[Job, list[tuple[int, float, float, float]]] = {}
    for nodes in (*options.nodes, 8):
        loads = {job: load_of(job, options.steps, nodes) for job in JOBS}
        measured = measure(nodes, options.steps, loads) if nodes in options.nodes else {}
        for job, load in loads.items():
            plan = plan_of(job, nodes, load, "auto")
            pushed, rows, sums = push_pull(plan.shape, load), plan.predicted["rows"], plan.predicted["substitute"]
            rows_m, sums_m = measured.get((job, "rows")), measured.get((job, "substitute"))
            best = sums_m or sums
            values = 1 - best.value_bytes / pushed.value_bytes
            both = 1 - (best.value_bytes + best.id_bytes) / (pushed.value_bytes + pushed.id_bytes)
            print(
                f"{job.model:7s}{job.ids:4d}{nodes:6d} | {_k(pushed)} +{pushed.id_bytes / 1e3:6.1f} |"
                f" {_k(rows_m)}{_k(rows)}{_ids(rows_m)} | {_k(sums_m)}{_k(sums)}{_ids(sums_m)}{_ids(sums)} |"
                f" {values:6.1%} {both:6.1%} | {'/'.join(plan.modes.values())}",
                flush=True,
            )
            point = (nodes, pushed.value_bytes, (rows_m or rows).value_bytes, best.value_bytes)
            lines.setdefault(job, []).append(point)
    if options.plot is not None:
        plot(lines, options.plot)


def _k(found: Sent | None) -> str:
    return f"{'-':>8s}" if found is None else f"{found.value_bytes / 1e3:8.1f}"


def _ids(found: Sent | None) -> str:
    return f"{'-':>7s}" if found is None else f"{found.id_bytes / 1e3:7.1f}"


def plot(lines: Mapping[Job, list[tuple[int, float, float, float]]], path: Path) -> None:
    """Value bytes over nodes, one panel a job."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(lines), 3), layout="constrained")
    for axes, (job, points) in zip(figure.subplots(1, len(lines)), lines.items(), strict=True):
        nodes, *ways = zip(*points, strict=True)
        for way, label in zip(ways, ("push/pull", "rows", "partial sums"), strict=True):
            axes.plot(nodes, [value / 1e6 for value in way], marker="o", label=label)
        axes.set(
            title=f"{job.model}, {job.ids} ids", xlabel="nodes", ylabel="MB sent by a worker, a step", ylim=(0, None)
        )
        axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
