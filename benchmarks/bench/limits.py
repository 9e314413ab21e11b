"""Kernels and the dense part beside the machine's own limits: memory bandwidth, random rows, matrix products.

A kernel's limit is a loop that moves the same bytes and does nothing else (`bare`), on as large a table; the dense
part's is the speed of torch's own matrix product of a size that suits the machine. One thread unless it says otherwise.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.bench import bare, data, report
from benchmarks.bench.rounds import Sizes
from benchmarks.systems import paceline as ours
from benchmarks.systems.worker import DIM, FIELDS, Data, Setup, settle
from torch.utils.flop_counter import FlopCounterMode

from paceline.exchange.direct import Pulled
from paceline.params.sparse import Clock
from paceline.params.table import REDUCE, RowGradient, unique
from paceline.runtimes.compute import row_sums, rows_of
from paceline.runtimes.local import settle_thread

STREAM = 1 << 28  # bytes of each array: beyond most caches
SQUARE = 2048
TURNS = 9


def measure(sizes: Sizes, folder: Path, ids: list[int], bf16: bool = True) -> tuple[str, dict[str, Any]]:
    """(tables as Markdown, the numbers)."""
    settle(sizes.threads)
    machine = machine_limits(sizes.threads, bf16)
    torch.set_num_threads(1)
    where = {count: folder / f"ids-{count}" for count in ids}
    for count, at in where.items():
        if not at.exists():
            data.write(at, count, sizes.samples)
    kernels = {count: kernel_times(str(at), sizes.batch) for count, at in where.items()}
    dense = [
        dense_share(str(next(iter(where.values()))), model, precision, machine, sizes)
        for model in ("deepfm", "dlrm")
        for precision in (("bf16", "fp32") if bf16 else ("fp32",))
    ]
    text = [
        report.rows("Limits of the machine", ["", "1 thread", f"{sizes.threads} threads"],
                    [[name, *(f"{value:,.1f}" for value in pair)] for name, pair in machine.items()]),
        *(report.rows(f"Kernels, {sizes.batch * FIELDS:,} ids of dim {DIM}, {count:,} in the table, 1 thread",
                      ["kernel", "ms", "limit, ms", "share of the limit"],
                      [[name, f"{ms:.2f}", f"{limit:.2f}", f"{limit / ms:.0%}"] for name, (ms, limit) in found.items()])
          for count, found in kernels.items()),
        report.rows("The dense part, 1 thread", ["", "GFLOP a step", "GFLOP/s", "of the matrix speed"],
                    [[d["name"], f"{d['gflop']:.2f}", f"{d['gflops']:,.0f}", f"{d['share']:.0%}"] for d in dense]),
    ]  # fmt: skip
    return "\n\n".join(text), {"machine": machine, "kernels": kernels, "dense": dense}


def timed(work: Callable[[], Any]) -> float:
    """Seconds of a call: the median of TURNS, after one that is not counted."""
    work()
    taken = []
    for _ in range(TURNS):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def together(threads: int, made: Callable[[], Callable[[], Any]]) -> float:
    """Seconds for `threads` threads to do their own work side by side."""
    works = [made() for _ in range(threads)]
    with ThreadPoolExecutor(threads, initializer=settle_thread) as pool:
        return timed(lambda: list(pool.map(lambda work: work(), works)))


def machine_limits(threads: int, bf16: bool) -> dict[str, tuple[float, float]]:
    """By name: the whole machine's rate on one thread, and on `threads` of them."""

    def stream() -> Callable[[], Any]:
        source, target = np.ones(STREAM >> 3), np.zeros(STREAM >> 3)
        return lambda: bare.copy(source, target)

    def product(kind: torch.dtype) -> Callable[[], Any]:
        a, b = torch.randn(SQUARE, SQUARE).to(kind), torch.randn(SQUARE, SQUARE).to(kind)
        return lambda: torch.mm(a, b)

    work: dict[str, tuple[Callable[[], Callable[[], Any]], float]] = {
        "copy, GB/s read and written": (stream, 2 * STREAM / 1e9),
        "matrix product fp32, GFLOP/s": (lambda: product(torch.float32), 2 * SQUARE**3 / 1e9),
        "matrix product bf16, GFLOP/s": (lambda: product(torch.bfloat16), 2 * SQUARE**3 / 1e9),
    }
    if not bf16:
        del work["matrix product bf16, GFLOP/s"]
    counts = (1, threads)
    return {
        name: tuple(count * amount / together(count, made) for count in counts)  # type: ignore[misc]
        for name, (made, amount) in work.items()
    }


def kernel_times(folder: str, batch: int) -> dict[str, tuple[float, float]]:
    """By kernel: (milliseconds, those of its limit)."""
    setup = Setup(folder, "rows", "fp32", "adagrad", batch=batch, threads=1)
    job = ours.make_job(setup, "async", "parquet")
    found = Data.read(folder)
    ours.fill(job, found.sizes)
    table = job.shard.table
    of_batch = ours.as_batches(found, batch)[0]
    ids = of_batch.flat_ids()
    distinct, inverse = unique(ids)
    numbers = table.find_or_insert(distinct)
    weights, counts = table.pull_counted(numbers, distinct)
    pulled = Pulled(numbers, weights, inverse, counts)
    given = [np.full((batch, FIELDS, DIM), 1e-3, np.float32)]
    gradient = RowGradient(numbers, row_sums(job.layout, of_batch, pulled, given), 1.0, 0)

    rng = np.random.default_rng(0)
    flat = np.zeros((len(table), 2 * DIM), np.float32)
    entries = np.zeros((1 << int(len(table) / 0.6).bit_length(), 2), np.int64)
    places = rng.integers(0, len(entries), len(distinct))
    out, wide = np.empty_like(weights), np.empty_like(given[0])
    ids_out, inverse_out, places_out = np.empty_like(ids), np.empty_like(inverse), np.empty_like(places)

    def copy_ids() -> None:
        bare.copy(ids, ids_out)
        bare.copy(inverse, inverse_out)

    def update() -> None:
        table.apply([gradient], Clock(1, batch), None, REDUCE["global_mean"])

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "distinct ids": (lambda: unique(ids), copy_ids),
        "look up": (lambda: table.find_or_insert(distinct), lambda: bare.probe(entries, places, places_out)),
        "gather": (lambda: table.pull_counted(numbers, distinct), lambda: bare.gather(flat, numbers, out)),
        "to positions": (lambda: rows_of(job.layout, of_batch, pulled), lambda: bare.copy(given[0], wide)),
        "sum per id": (lambda: row_sums(job.layout, of_batch, pulled, given), lambda: bare.copy(given[0], wide)),
        "update": (update, lambda: bare.change(flat, numbers, gradient.gradients)),
    }
    return {name: (1e3 * timed(kernel), 1e3 * timed(limit)) for name, (kernel, limit) in pairs.items()}


def dense_share(
    folder: str, model: str, precision: str, machine: dict[str, tuple[float, float]], sizes: Sizes
) -> dict[str, Any]:
    """Floating-point operations of a step's dense part, and the share of the matrix speed that it goes at."""
    setup = Setup(folder, model, precision, "adagrad", "dense", sizes.batch, threads=1)
    system = ours.dense_alone(setup)
    replica = ours.make_job(setup, "async", "parquet").replicas[0]
    batch = ours.as_batches(Data.read(folder), sizes.batch)[0]
    rows = {p.name: torch.randn(sizes.batch, FIELDS, p.width) for p in replica.layout.parts}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        replica.logits(batch, rows)
    gflop = 3 * counter.get_total_flops() / 1e9  # a product forward is two products backward
    gflops = gflop / timed(lambda: system.train(1))
    limit = machine[f"matrix product {precision}, GFLOP/s"][0]
    return {"name": f"{model}, {precision}", "gflop": gflop, "gflops": gflops, "share": gflops / limit}
