"""One table from a hundred thousand rows to a hundred million: speed, growth and memory.

    python -m benchmarks.tables [--sizes 100000,1000000,...] [--rows fp32,bf16] [--optimizer NAME] [--rounds 5]
                                [--json FILE]

The table of a DeepFM job (26 fields, dim 16) grows by steps of new ids. At each size are measured, in turns, medians
of the rounds:

- training: whole steps of 4096 samples by two workers under GBA, ids by the power law of `make bench`;
- rows: their rows alone (pull, sums per id, update) in one thread, and the same of ids drawn evenly, which no cache
  helps;
- dense part: forward, backward and the dense optimizer of the same steps, which no table changes.

Growth: the slowest steps of 106,496 new ids against their median. Memory: of records, clocks, ids and index, for each
row, against weights + slots + 24 bytes (id and clock). A size that would not fit into memory is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from benchmarks.bench.data import draw_ids, field_sizes
from benchmarks.systems.paceline import Threads, hashed
from benchmarks.systems.worker import DIM, FIELDS, HIDDEN, LR, NUMBERS, STD, Cycle

from paceline import pace as p
from paceline.assembly import Job, assemble, make_shard
from paceline.batch import Batch, Cursor, Span
from paceline.data.moments import no_moments
from paceline.jobfile import check
from paceline.params.sparse import Clock
from paceline.params.table import REDUCE, RowGradient
from paceline.runtimes.compute import row_sums, rows_of
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import run_day, settle_thread

BATCH, THREADS, STEPS = 4096, 2, 8
SIZES = "100000,1000000,10000000,100000000"
INDEX = 64  # bytes of the index for each row at the worst: while it doubles, the old one is there too


def make_job(rows: str, optimizer: str, device: str = "cpu") -> Job:
    values = {
        "data": {"format": "parquet", "days": [__file__]},  # never read: batches are in memory
        "features": {
            "label": {"column": "label"},
            "numeric": [{"column": f"i{n}", "transform": "identity"} for n in range(NUMBERS)],
            "categorical": [f"c{n}" for n in range(FIELDS)],
        },
        "model": {"name": "deepfm", "dim": DIM, "hidden": list(HIDDEN), "std": STD},
        "optimizer": {
            "sparse": {"name": optimizer, "lr": LR, "rows": rows},
            "dense": {"name": "adagrad", "lr": LR},
        },
        "batch": {"global": BATCH, "local": BATCH // THREADS},
        "pace": {"name": "gba", "max_staleness": 3},
        "workers": THREADS,
        "device": device,
    }
    return assemble(check(values, "tables"), Path.cwd())


def batches(size: int, even: bool, local: int, count: int) -> list[Batch]:
    """Samples whose ids are among `size`, by the power law or evenly."""
    rng = np.random.default_rng(size)
    span = Span(0, Cursor(), Cursor(), no_moments(NUMBERS))
    made = []
    for _ in range(count):
        drawn = [rng.integers(0, n, local) if even else draw_ids(rng, n, local) for n in field_sizes(size)]
        dense = rng.normal(size=(local, 2 * NUMBERS)).astype(np.float32)
        labels = (rng.random(local) < 0.25).astype(np.float32)
        made.append(Batch(labels, hashed(np.stack(drawn, axis=1)), (), dense, None, span, span))
    return made


def new_ids(before: int, size: int) -> Iterator[np.ndarray]:
    """Ids that a table of `before` lacks to one of `size`, int64, a step's worth each."""
    ends = zip(field_sizes(before) if before else [0] * FIELDS, field_sizes(size), strict=True)
    bounds = np.array(list(ends))
    for start in range(0, int((bounds[:, 1] - bounds[:, 0]).max()), BATCH):
        whole = bounds[:, :1] + np.arange(start, start + BATCH)
        ids = hashed(np.ascontiguousarray(whole.T)).T
        yield ids[whole < bounds[:, 1:]]


class Bench:
    """A job, and what is timed of it."""

    def __init__(self, rows: str, optimizer: str, device: str = "cpu") -> None:
        self.job = make_job(rows, optimizer, device)
        self.coordinator = Coordinator(
            p.begin(self.job.config.pace.build(self.job.config.gradients)), self.job.route, lambda _: None
        )
        self.version = 0
        self.size = 0

    def row_bytes(self) -> int:
        table = self.job.shard.table
        return (2 if table.half else 4) * table.weights + 4 * table.slots + 24

    def grow(self, size: int) -> list[float]:
        """Seconds of each step of new ids."""
        table, seconds = self.job.shard.table, []
        for ids in new_ids(self.size, size):
            started = time.perf_counter()
            self.job.direct.rows_of(ids)
            if len(ids) == BATCH * FIELDS:
                seconds.append(time.perf_counter() - started)
        self.size = size
        assert len(table) == size, (len(table), size)
        return seconds

    def measures(self) -> dict[str, Callable[[], Any]]:
        local = BATCH // THREADS
        mine = Cycle(batches(self.size, False, local, 2 * STEPS * THREADS))
        logs, evens = (Cycle(batches(self.size, even, BATCH, STEPS)) for even in (False, True))
        return {
            "training": lambda: self.train(mine.take(STEPS * THREADS)),
            "rows": lambda: [self.rows(batch) for batch in logs.take(STEPS)],
            "rows, ids drawn evenly": lambda: [self.rows(batch) for batch in evens.take(STEPS)],
            "dense part": (dense := self.dense(mine)) and (lambda: dense.train(STEPS * THREADS)),
        }

    def train(self, given: Any) -> None:
        run_day(self.coordinator, self.job.direct, self.job.replicas, iter(given))

    def rows(self, batch: Batch) -> None:
        job, table = self.job, self.job.shard.table
        pulled = job.direct.pull(batch.flat_ids(), None)
        parts = rows_of(job.layout, batch, pulled)
        sums = row_sums(job.layout, batch, pulled, [1e-3 * part.numpy() for part in parts.values()])
        self.version = now = max(self.version, self.coordinator.machine.version) + 1
        gradient = RowGradient(pulled.numbers, sums, 1.0, now - 1)
        table.apply([gradient], Clock(now, now * BATCH), None, REDUCE["global_mean"])

    def dense(self, given: Cycle) -> Threads:
        job = self.job
        blocks = [make_shard(job.config).dense for _ in job.replicas]
        made = []
        for batch in given.take(4):
            pulled = job.direct.pull(batch.flat_ids(), None)
            made.append((batch, {name: rows.clone() for name, rows in rows_of(job.layout, batch, pulled).items()}))

        def step(thread: int, item: Any) -> None:
            batch, rows = item
            replica, block = job.replicas[thread], blocks[thread]
            leaves = {name: tensor.detach().requires_grad_() for name, tensor in rows.items()}
            _, dense, _ = replica.differentiate(batch, leaves, list(leaves.values()))
            block.apply(dense, Clock(1, 1), 1.0, None)

        return Threads(_Setup(THREADS), step, Cycle(made))


class _Setup:
    def __init__(self, threads: int) -> None:
        self.threads = threads


def measure(bench: Bench, size: int, rounds: int) -> dict[str, Any]:
    """Grow to `size` rows and time everything there."""
    growth = bench.grow(size)
    parts = bench.measures()
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(rounds + 1):  # the first one warms up
        for name, work in parts.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append((time.perf_counter() - started) / STEPS)
    found: dict[str, Any] = {"ids": size, **{name: statistics.median(values) for name, values in seconds.items()}}
    table = bench.job.shard.table
    found |= {"bytes": table.bytes / size, "bound": bench.row_bytes()}
    if len(growth) >= 5:
        growth.sort()
        found |= {"growth_median": statistics.median(growth), "growth_slowest": growth[-3:]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--rows", default="fp32,bf16")
    parser.add_argument("--optimizer", default="rowwise_adagrad")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settle_thread()
    results = []
    for rows in options.rows.split(","):
        bench = Bench(rows, options.optimizer)
        print(f"\n{rows} rows, {options.optimizer}, {BATCH} samples a step, milliseconds\n")
        print(
            "| rows | training | dense part | rows | evenly drawn | slowest / median growth | bytes a row | of bound |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for size in map(int, options.sizes.split(",")):
            needed = (size - bench.size) * (bench.row_bytes() + INDEX)
            if needed > psutil.virtual_memory().available:
                print(f"| {size:,} | left out: it needs {needed / 2**30:.0f} GB |")
                continue
            found = measure(bench, size, options.rounds)
            results.append({"rows": rows, "optimizer": options.optimizer, **found})
            times = [f"{1e3 * found[k]:.1f}" for k in ("training", "dense part", "rows", "rows, ids drawn evenly")]
            grown = "–"
            if "growth_median" in found:
                grown = f"{found['growth_slowest'][-1] / found['growth_median']:.1f}"
            memory = [f"{found['bytes']:.0f}", f"{found['bytes'] / found['bound']:.2f}"]
            print("| " + " | ".join([f"{size:,}", *times, grown, *memory]) + " |", flush=True)
        del bench
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
