"""Measuring what a plan needs: the data and the model in bytes, and this machine in seconds."""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from paceline import pace as p
from paceline.assembly import Job, assemble
from paceline.batch import Batch
from paceline.config import JobConfig
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.exchange.direct import DirectRoute
from paceline.exchange.placement import owner_of
from paceline.params.table import unique
from paceline.planning.facts import BatchFact, DataFacts, MachineFacts, Timing
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.local import run_day, settle_thread

_BATCHES = 6  # of each size that are looked at
_PARTS = 4  # gradients of the update that tells what an update takes beside its gradients


def batches(job: Job, size: int, count: int, day: int = 0) -> list[Batch]:
    """The first `count` batches of `size` samples, or as many as there are from `day` on; short ones only if there are
    no others."""
    plan = Plan(day, size, moments=no_moments(len(job.schema.dense)))
    found: list[Batch] = []
    for files in job.days[day:]:
        with contextlib.closing(day_batches(job.log, files, plan)) as source:
            found += itertools.islice(source, count - len(found))
        if len(found) >= count:
            break
    return [batch for batch in found if batch.samples == size] or found[:1]


def measure_data(config: JobConfig, base: Path, sizes: list[int], shards: list[int]) -> DataFacts:
    """What batches of each of `sizes` hold, how evenly rows lie on each number of `shards`, and what the model is."""
    job = assemble(config, base, replicas=1)
    found, seen = [], []
    for size in sorted(set(sizes)):
        looked = batches(job, size, _BATCHES)
        # One pull of all would create rows once; bytes are what every batch carries by itself.
        pulled = [job.direct.pull(batch.flat_ids(), None) for batch in looked]
        distinct = [unique(batch.flat_ids())[0] for batch in looked]
        mean = statistics.fmean(batch.samples for batch in looked)
        scale = size / mean  # of a log that is shorter than a batch
        found.append(
            BatchFact(
                size,
                scale * statistics.fmean(len(batch.flat_ids()) for batch in looked),
                scale * statistics.fmean(len(ids) for ids in distinct),
                scale * statistics.fmean(pull.bytes for pull in pulled),
            )
        )
        seen = distinct
    ids = np.concatenate(seen)  # each as often as batches ask for it
    skew = {n: float(np.bincount(owner_of(ids, n), minlength=n).max() / (len(ids) / n)) for n in sorted(set(shards))}
    return DataFacts(tuple(found), int(job.shard.dense.flat.numel()), skew, _activations(job, looked[0]))


def _activations(job: Job, batch: Batch) -> float:
    """Bytes that computing the gradient keeps for a sample: what autograd stores, each tensor once."""
    kept: dict[int, int] = {}
    replica = job.replicas[0]
    own = {parameter.untyped_storage().data_ptr() for parameter in replica.model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    pulled = job.direct.pull(batch.flat_ids(), replica.flat)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        replica.gradient(batch, pulled)
    return sum(kept.values()) / batch.samples


def measure_machine(config: JobConfig, base: Path, sizes: list[int], seconds: float) -> MachineFacts:
    """This machine's times at local batches of `sizes` (three of them, or fewer if they are equal), in about `seconds`
    seconds. Trains on copies that are thrown away."""
    sizes = sorted(set(sizes))
    cores = os.cpu_count() or 1
    job = assemble(config, base, replicas=cores)
    share = seconds / (len(sizes) + 3)
    read_rate, read_cpu = _reading(job, sizes[-1], share)
    runtime, timings = _Runtime(job), []
    for size in sizes:
        looked = batches(job, size, 4 * _BATCHES)
        runtime.loop(looked, 1, 1, 0.0)  # compiles, and brings rows into being
        step, apply = runtime.loop(looked, 1, 1, share)
        timings.append(Timing(size, _computing(job, looked, share / 2), step, apply))
    alone = timings[len(sizes) // 2]
    looked = batches(job, alone.samples, 4 * _BATCHES)
    _, several = runtime.loop(looked, 1, _PARTS, share)
    crowding = 1.0
    if cores > 1:
        cycle, _ = runtime.loop(looked, cores, 1, share)
        crowding = max(cycle / alone.step, 1.0)
    return MachineFacts(cores, tuple(timings), _PARTS, several, crowding, read_cpu, read_rate)


def _reading(job: Job, size: int, seconds: float) -> tuple[float, float]:
    """(samples per second, seconds of a core for a sample) of reading alone."""
    plan = Plan(0, size, moments=no_moments(len(job.schema.dense)))
    rows, started, used = 0, time.perf_counter(), time.process_time()
    for files in itertools.cycle(job.days):
        with contextlib.closing(day_batches(job.log, files, plan)) as source:
            for batch in source:
                rows += batch.samples
                if time.perf_counter() - started > seconds:
                    break
        if time.perf_counter() - started > seconds:
            break
    return rows / (time.perf_counter() - started), (time.process_time() - used) / rows


def _computing(job: Job, looked: list[Batch], seconds: float) -> float:
    """Median seconds of a gradient in a thread as workers have it."""
    replica = job.replicas[0]

    def measured() -> float:
        settle_thread()
        took: list[float] = []
        until = time.perf_counter() + seconds
        pulled = [job.direct.read(batch.flat_ids()) for batch in looked]
        for batch, rows in itertools.cycle(zip(looked, pulled, strict=True)):
            started = time.perf_counter()
            replica.gradient(batch, rows)
            took.append(time.perf_counter() - started)
            if time.perf_counter() > until and len(took) > 2 * len(looked):
                break
        return statistics.median(took)

    with ThreadPoolExecutor(1, "measure") as pool:
        return pool.submit(measured).result()


class _Runtime:
    """The local runtime itself, on batches that are in memory, so that nothing is read."""

    def __init__(self, job: Job) -> None:
        self._job, self._route = job, _Timed(job.direct)
        self._coordinator = Coordinator(p.begin(p.asynchronous()), self._route, lambda _: None)

    def loop(self, looked: list[Batch], workers: int, gradients: int, seconds: float) -> tuple[float, float]:
        """(median seconds between updates by the same of `workers` threads, median seconds of an update of
        `gradients`), from passes over `looked` for about `seconds`, at least one."""
        self._coordinator.switch(p.bulk_synchronous(gradients))
        self._route.ended.clear()
        self._route.seconds.clear()
        started = time.perf_counter()

        def source() -> Iterator[Batch]:
            while True:
                yield from looked
                if time.perf_counter() - started > seconds:
                    return

        run_day(self._coordinator, self._job.direct, self._job.replicas[:workers], source())
        cycles = [b - a for ends in self._route.ended.values() for a, b in itertools.pairwise(ends)]
        took = time.perf_counter() - started
        return statistics.median(cycles) if cycles else took, statistics.median(self._route.seconds)


class _Timed:
    """A route whose updates are timed. ended: when updates were through, by the thread that brought them about."""

    def __init__(self, route: DirectRoute) -> None:
        self._route = route
        self.seconds: list[float] = []
        self.ended: dict[int, list[float]] = {}

    def apply(self, command: p.Apply) -> float:
        started = time.perf_counter()
        norm = self._route.apply(command)
        ended = time.perf_counter()
        self.seconds.append(ended - started)
        self.ended.setdefault(threading.get_ident(), []).append(ended)
        return norm

    def drop(self, number: int) -> None:
        self._route.drop(number)
