"""paceline: its local runtime under a pace, from memory or from files; its rows alone; its dense part alone.

`threads` worker threads with one torch thread each, one update per batch of the setup. Ids come as 64-bit hashes and
are looked up, as in every job; the table holds every id that there is before the clock starts. Its dense inputs are
twice the numbers: each has a flag for a missing value.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.systems.worker import (
    BOTTOM,
    DIM,
    EPS,
    FIELDS,
    HIDDEN,
    LR,
    NUMBERS,
    STD,
    Cycle,
    Data,
    LeftOut,
    Setup,
    serve,
)
from torch import Tensor

from paceline import pace as p
from paceline.assembly import Job, assemble, make_shard
from paceline.batch import Batch, Cursor, Span
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.jobfile import check
from paceline.kernels.hashing import field_seed, hash_integers
from paceline.params.sparse import Clock
from paceline.params.table import REDUCE, RowGradient
from paceline.runtimes.compute import row_sums, rows_of
from paceline.runtimes.coordinator import Coordinator, Lease
from paceline.runtimes.local import run_day, settle_thread

PACES: dict[str, dict[str, Any]] = {
    "sync": {"name": "sync"},
    "gba": {"name": "gba", "max_staleness": 3},
    "async": {"name": "async"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "lr": {},
    "fm": {"dim": DIM, "std": STD},
    "deepfm": {"dim": DIM, "hidden": list(HIDDEN), "std": STD},
    "dlrm": {"dim": DIM, "hidden": list(HIDDEN), "bottom": list(BOTTOM), "std": STD},
}


def make_job(setup: Setup, pace: str, suffix: str) -> Job:
    """The job a user would write down."""
    model = "dlrm" if setup.model == "rows" else setup.model  # whose rows are the embedding alone
    values = {
        "data": {"format": suffix.split(".")[0], "days": [str(Path(setup.folder) / f"log.{suffix}")]},
        "features": {
            "label": {"column": "label"},
            "numeric": [{"column": f"i{n}", "transform": "identity"} for n in range(NUMBERS)],
            "categorical": [f"c{n}" for n in range(FIELDS)],
        },
        "model": {"name": model, **OPTIONS[model]},
        "optimizer": {
            "sparse": {"name": setup.optimizer, "lr": LR, "eps": EPS, "initial": 0.0},
            "dense": {"name": "adagrad", "lr": LR, "eps": EPS},
        },
        "batch": {"global": setup.batch, "local": setup.batch if pace == "async" else setup.batch // setup.threads},
        "pace": PACES[pace],
        "workers": setup.threads,
        "precision": setup.precision,
    }
    return assemble(check(values, "bench"), Path.cwd())


def hashed(ids: np.ndarray) -> np.ndarray:
    """The ids that reading the same whole numbers from a log gives, int64 like ids [rows, FIELDS]."""
    out, none_missing = np.empty_like(ids), np.zeros(len(ids), bool)
    for field in range(ids.shape[1]):
        hash_integers(ids[:, field].copy(), none_missing, field_seed(f"c{field}"), out[:, field])
    return out


def fill(job: Job, sizes: list[int]) -> None:
    """A row for every id."""
    for field, size in enumerate(sizes):
        whole = np.arange(size, dtype=np.int64)
        ids = np.empty_like(whole)
        hash_integers(whole, np.zeros(size, bool), field_seed(f"c{field}"), ids)
        for start in range(0, size, 1 << 16):
            job.shard.table.find_or_insert(ids[start : start + (1 << 16)])


def as_batches(data: Data, size: int) -> list[Batch]:
    span = Span(0, Cursor(), Cursor(), no_moments(NUMBERS))
    made = []
    for ids, numbers, labels in data.batches(size):
        dense = np.zeros((size, 2 * NUMBERS), np.float32)
        dense[:, ::2] = numbers
        made.append(Batch(labels, hashed(ids), (), dense, None, span, span))
    return made


class Recorder(Coordinator):
    """Keeps the losses, which a run only averages."""

    losses: list[float]

    def push(
        self, worker: str, lease: Lease, loss: float, norm: float, statistics: Tensor, seconds: float = 0.0
    ) -> None:
        self.losses.append(loss)
        super().push(worker, lease, loss, norm, statistics, seconds)


class Paced:
    """variant "PACE" or "PACE SUFFIX": from memory, or from log.SUFFIX."""

    def __init__(self, setup: Setup) -> None:
        pace, _, self.suffix = setup.variant.partition(" ")
        self.job = make_job(setup, pace, self.suffix or "parquet")
        self.local = self.job.config.local_batch
        self.each = setup.batch // self.local
        data = Data.read(setup.folder)
        fill(self.job, data.sizes)
        self.batches = Cycle([] if self.suffix else as_batches(data, self.local))
        self.file = self._read_on()
        machine = p.begin(self.job.config.pace.build(self.job.config.gradients))
        self.coordinator = Recorder(machine, self.job.route, lambda _: None)

    def train(self, steps: int) -> list[float]:
        self.coordinator.losses = []
        count = steps * self.each
        source = islice(self.file, count) if self.suffix else self.batches.take(count)
        run_day(self.coordinator, self.job.direct, self.job.replicas, iter(source))
        return self.coordinator.losses

    def _read_on(self) -> Iterator[Batch]:
        """Batches of the file, again from its start where it ends. It stays open from round to round, as in a day; what
        is read ahead between two rounds is a few batches."""
        while True:
            for batch in day_batches(self.job.log, self.job.days[0], Plan(0, self.local)):
                if batch.samples == self.local:
                    yield batch


class Threads:
    """Steps dealt out to `threads` threads that each work as a worker does. Nothing is learned: there is no loss."""

    def __init__(self, setup: Setup, step: Callable[[int, Any], None], items: Cycle) -> None:
        self._pool = ThreadPoolExecutor(setup.threads, "worker", settle_thread)
        self._step, self._items, self._threads = step, items, setup.threads

    def train(self, steps: int) -> list[float]:
        items = iter(self._items.take(steps))
        lock = threading.Lock()

        def body(thread: int) -> None:
            while True:
                with lock:
                    item = next(items, None)
                if item is None:
                    return
                self._step(thread, item)

        for part in [self._pool.submit(body, thread) for thread in range(self._threads)]:
            part.result()
        return []


def rows_alone(setup: Setup) -> Threads:
    """Pull (duplicates found, ids looked up, rows gathered), spread to positions, gradients summed per id, update."""
    job = make_job(setup, "async", "parquet")
    data = Data.read(setup.folder)
    fill(job, data.sizes)
    route, table = job.direct, job.shard.table
    given = [np.full((setup.batch, FIELDS, DIM), 1e-3, np.float32)]
    version = iter(range(1, 1 << 60))

    def step(_: int, batch: Batch) -> None:
        pulled = route.pull(batch.flat_ids(), None)
        rows_of(job.layout, batch, pulled)
        sums = row_sums(job.layout, batch, pulled, given)
        with route.whole():
            now = next(version)
            gradient = RowGradient(pulled.numbers, sums, 1.0, now - 1)
            table.apply([gradient], Clock(now, now * setup.batch), None, REDUCE["global_mean"])

    return Threads(setup, step, Cycle(as_batches(data, setup.batch)))


def dense_alone(setup: Setup) -> Threads:
    """Forward, backward and the dense optimizer's step on rows that lie ready: what no table could be faster than."""
    if setup.model in ("lr", "fm", "rows"):
        raise LeftOut("hardly any dense part")
    job = make_job(setup, "async", "parquet")
    data = Data.read(setup.folder)
    blocks = [make_shard(job.config).dense for _ in job.replicas]
    made = []
    for batch in as_batches(data, setup.batch)[:16]:
        shapes = [(part.name, (batch.samples, FIELDS, part.width)) for part in job.layout.parts]
        made.append((batch, {name: STD * torch.randn(shape) for name, shape in shapes}))

    def step(thread: int, item: tuple[Batch, dict[str, Tensor]]) -> None:
        batch, rows = item
        replica, block = job.replicas[thread], blocks[thread]
        with torch.no_grad():
            replica.flat.copy_(block.flat)
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in rows.items()}
        _, dense, _ = replica.differentiate(batch, leaves, list(leaves.values()))
        block.apply(dense, Clock(1, 1), 1.0, None)

    return Threads(setup, step, Cycle(made))


def build(setup: Setup) -> Any:
    if setup.model == "rows":
        return rows_alone(setup)
    return dense_alone(setup) if setup.variant == "dense" else Paced(setup)


if __name__ == "__main__":
    serve(build, "paceline")
