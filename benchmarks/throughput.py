"""Training throughput against a plain PyTorch loop, in one run, and from compressed files against memory.

    python benchmarks/throughput.py [--rounds 5] [--samples 400000] [--json FILE]

Model: DeepFM, 26 categorical and 13 bucketed numeric fields (39 ids per row), dim 16, MLP 400-400-400, a million ids in
every table, Adagrad on rows and dense parameters, one update per 4096 samples. The peer is given ids that are already
dense indexes; paceline takes the 64-bit ids as they come and looks them up. Both use 2 threads: the peer 2 torch
threads, paceline 2 worker threads with one torch thread each. Rounds are interleaved; medians and ratios are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paceline import pace as p
from paceline.assembly import assemble
from paceline.batch import Batch
from paceline.data.stream import Plan, day_batches
from paceline.data.synth import SynthSpec
from paceline.data.synth_write import write_log
from paceline.jobfile import check
from paceline.params.table import unique
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import run_day

FIELDS, DIM, HIDDEN, UPDATE = 39, 16, (400, 400, 400), 4096


class PlainDeepFM(nn.Module):
    """DeepFM as a PyTorch user writes it: one sparse embedding for all fields and one for the linear term."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ids, DIM, sparse=True)
        self.linear = nn.Embedding(ids, 1, sparse=True)
        nn.init.normal_(self.embedding.weight, std=0.01)
        nn.init.zeros_(self.linear.weight)
        layers: list[nn.Module] = []
        width = FIELDS * DIM
        for out in HIDDEN:
            layers += [nn.Linear(width, out), nn.ReLU()]
            width = out
        self.mlp = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        v = self.embedding(ids)
        sums, squares = v.sum(1), v.square().sum(1)
        factor = 0.5 * (sums.square() - squares).sum(1)
        return self.linear(ids).sum((1, 2)) + factor + self.mlp(v.flatten(1)).squeeze(1)


def plain_round(model: PlainDeepFM, optimizers: list[Any], batches: list[tuple[Any, Any]], bf16: bool) -> float:
    """Seconds for one pass of the plain loop."""
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    started = time.perf_counter()
    for ids, labels in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(ids)
        loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return time.perf_counter() - started


def job(precision: str, pace: dict[str, Any], local: int, workers: int, days: list[str]) -> Any:
    values = {
        "data": {"format": "criteo", "days": days},
        "model": {"name": "deepfm", "dim": DIM, "hidden": list(HIDDEN)},
        "optimizer": {"sparse": {"name": "adagrad", "lr": 0.02}, "dense": {"name": "adagrad", "lr": 0.01}},
        "batch": {"global": UPDATE, "local": local},
        "pace": pace,
        "workers": workers,
        "precision": precision,
    }
    return assemble(check(values, "benchmark"), Path.cwd())


def our_round(made: Any, source: Iterator[Batch]) -> float:
    """Seconds for one pass of paceline's local runtime over `source`."""
    machine = p.begin(made.config.pace.build(made.config.gradients))
    # Versions go on from round to round: to a machine that began anew, the rows' last updates would lie in the future,
    # and where staleness is limited their gradients would be cut.
    machine.version = made.route.shard.version
    machine.restart_tokens()
    coordinator = Coordinator(machine, made.route, lambda _: None)
    started = time.perf_counter()
    run_day(coordinator, made.route, made.replicas, source)
    return time.perf_counter() - started


def read(path: str, local: int) -> list[Batch]:
    log = assemble_log(path)
    return [replace(b, ids=np.ascontiguousarray(b.ids)) for b in day_batches(log, [path], Plan(0, local))]


def assemble_log(path: str) -> Any:
    from paceline.assembly import make_log

    return make_log(check({"data": {"format": "criteo", "days": [path]}}, "benchmark"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}; writing the log ...")
        write_log(SynthSpec(rows=options.samples, days=1, vocabulary=4_000_000, seed=3), Path(folder))
        path = f"{folder}/day_0.tsv.gz"
        results = [r for precision in options.precisions.split(",") for r in compare(path, precision, options.rounds)]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def compare(path: str, precision: str, rounds: int) -> list[dict[str, Any]]:
    whole, half = read(path, UPDATE), read(path, UPDATE // 2)
    rows = sum(b.samples for b in whole)
    distinct, inverse = unique(np.concatenate([b.flat_ids() for b in whole]))
    indexes = torch.from_numpy(inverse.astype(np.int64).reshape(rows, FIELDS))
    plain, at = [], 0
    for b in whole:
        plain.append((indexes[at : at + b.samples].contiguous(), torch.from_numpy(b.labels.copy())))
        at += b.samples
    ids = max(len(distinct), 1_000_000)
    model = PlainDeepFM(ids)
    rowwise = [model.embedding.weight, model.linear.weight]
    optimizers = [
        torch.optim.Adagrad(rowwise, lr=0.02, initial_accumulator_value=1e-6),
        torch.optim.Adagrad(model.mlp.parameters(), lr=0.01),
    ]
    gba = {"name": "gba", "max_staleness": 3}
    systems: dict[str, Any] = {
        "plain PyTorch, 2 threads": lambda: plain_round(model, optimizers, plain, precision == "bf16"),
    }
    ours = {
        "paceline async, 2 workers": (job(precision, {"name": "async"}, UPDATE, 2, [path]), whole),
        "paceline gba, 2 workers": (job(precision, gba, UPDATE // 2, 2, [path]), half),
        "paceline sync, 2 workers": (job(precision, {"name": "sync"}, UPDATE // 2, 2, [path]), half),
        "paceline sync, 1 worker": (job(precision, {"name": "sync"}, UPDATE, 1, [path]), whole),
    }
    rng = np.random.default_rng(0)
    for made, _ in ours.values():  # as many rows as the peer's embedding has
        made.route.shard.table.find_or_insert(rng.integers(-(2**63), 2**63 - 1, ids - len(distinct)))
    for name, (made, batches) in ours.items():
        systems[name] = lambda made=made, batches=batches: our_round(made, iter(batches))
    for local, name in ((UPDATE, "async"), (UPDATE // 2, "gba")):
        made = ours[f"paceline {name}, 2 workers"][0]
        systems[f"paceline {name}, 2 workers, from .tsv.gz"] = lambda made=made, local=local: our_round(
            made, day_batches(made.log, [path], Plan(0, local))
        )
    for run in systems.values():  # compile, fill tables and caches
        run()
    taken: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, run in systems.items():
            taken[name].append(run())
    return report(taken, precision, rows, ids)


def report(taken: dict[str, list[float]], precision: str, rows: int, ids: int) -> list[dict[str, Any]]:
    base = taken["plain PyTorch, 2 threads"]
    print(f"\n{precision}, {rows:,} rows, {ids:,} ids, {len(base)} rounds (median, spread; ratio of each round)")
    results = []
    for name, seconds in taken.items():
        rate = rows / statistics.median(seconds)
        ratios = [b / s for b, s in zip(base, seconds, strict=True)]
        ratio = statistics.median(ratios)
        spread = f"{rows / max(seconds):>9,.0f} – {rows / min(seconds):,.0f}"
        print(f"{name:44s} {rate:>9,.0f} samples/s  {spread:24s} {ratio:5.2f}x")
        results.append(
            {"bench": "throughput", "system": name, "precision": precision, "optimizer": "adagrad", "ids": ids,
             "samples_per_s": round(rate), "ratio_to_plain": round(ratio, 3)}
        )  # fmt: skip
    return results


if __name__ == "__main__":
    main()
