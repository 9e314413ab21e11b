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
from typing import NamedTuple

import numpy as np
import torch

from paceline import pace as p
from paceline.assembly import Job, assemble
from paceline.batch import Batch
from paceline.config import JobConfig
from paceline.data.moments import no_moments
from paceline.data.stream import ENCODERS, Plan, day_batches
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
    read_rate, read_cpu = _reading(job, sizes[-1], share, cores)
    runtime, timings = _Runtime(job), []
    for size in sizes:
        looked = batches(job, size, 8 * _BATCHES)
        half = len(looked) // 2
        runtime.loop(looked[:half] or looked, 1, 1, 0.0)  # compiles
        # Once only: rows that are new, or far from any cache, are what a run has to do with.
        alone = runtime.loop(looked[half:], 1, 1, 0.0)
        timings.append(Timing(size, _computing(job, looked, share / 2), alone.busy, alone.apply))
    middle = sizes[len(sizes) // 2]
    looked = batches(job, middle, 4 * _BATCHES)
    several = runtime.loop(looked, 1, _PARTS, share).apply
    known = runtime.loop(looked, 1, 1, share).cycle
    crowding = runtime.loop(looked, cores, 1, share).cycle / known if cores > 1 else 1.0
    crowding = min(max(crowding, 1.0), float(cores))  # at worst a second core brings nothing
    return MachineFacts(cores, tuple(timings), _PARTS, several, crowding, read_cpu, read_rate)


def _reading(job: Job, size: int, seconds: float, cores: int) -> tuple[float, float]:
    """(samples per second that an idle machine could read, seconds of a core for a sample). One thread cuts the files
    into rows, ENCODERS others make ids of them."""
    plan = Plan(0, size, moments=no_moments(len(job.schema.dense)))
    rows, started, used = 0, time.perf_counter(), time.process_time()
    with contextlib.closing(day_batches(job.log, job.days[0], plan)) as source:
        for batch in source:
            rows += batch.samples
            if time.perf_counter() - started > seconds / 2:
                break
    whole = (time.process_time() - used) / rows
    rows, started, used = 0, time.perf_counter(), time.thread_time()
    for path in job.days[0]:
        for chunk in job.log.chunks(path, 0, 0):
            rows += chunk.rows
            if time.perf_counter() - started > seconds / 2:
                break
    cut = min((time.thread_time() - used) / rows, whole)
    encode = (whole - cut) / ENCODERS
    return 1.0 / max(cut, encode, whole / cores), whole


def _computing(job: Job, looked: list[Batch], seconds: float) -> float:
    """Median seconds of a gradient in a thread as workers have it."""
    replica = job.replicas[0]

    def measured() -> float:
        settle_thread()
        took: list[float] = []
        until = time.perf_counter() + seconds
        pulled = [job.direct.read(batch.flat_ids()) for batch in looked]
        for batch, rows in itertools.cycle(zip(looked, pulled, strict=True)):
            started = time.thread_time()
            replica.gradient(batch, rows)
            took.append(time.thread_time() - started)
            if time.perf_counter() > until and len(took) > 2 * len(looked):
                break
        return statistics.median(took)

    with ThreadPoolExecutor(1, "measure") as pool:
        return pool.submit(measured).result()


class _Loop(NamedTuple):
    """Medians of one thread, seconds. cycle: from update to update; busy: of it, on a core; apply: of an update, on a
    core. What others do on the machine lengthens a cycle and not the time on a core."""

    cycle: float
    busy: float
    apply: float


class _Runtime:
    """The local runtime itself, on batches that are in memory, so that nothing is read."""

    def __init__(self, job: Job) -> None:
        self._job, self._route = job, _Timed(job.direct)
        self._coordinator = Coordinator(p.begin(p.asynchronous()), self._route, lambda _: None)

    def loop(self, looked: list[Batch], workers: int, gradients: int, seconds: float) -> _Loop:
        """Passes over `looked` for about `seconds`, at least one, with `workers` threads and `gradients` an update."""
        self._coordinator.switch(p.bulk_synchronous(gradients))
        self._route.clear()
        started = time.perf_counter()

        def source() -> Iterator[Batch]:
            # So many that some thread has several updates, however short the log and whatever the cores.
            least = max(len(looked), 3 * workers * gradients)
            for number, batch in enumerate(itertools.cycle(looked)):
                if number >= least and time.perf_counter() - started > seconds:
                    return
                yield batch

        run_day(self._coordinator, self._job.direct, self._job.replicas[:workers], source())
        return self._route.medians()


class _Timed:
    """A route whose updates are timed: when each was through, by the thread that brought it about."""

    def __init__(self, route: DirectRoute) -> None:
        self._route = route
        self._seconds: list[float] = []
        self._ended: dict[int, list[tuple[float, float]]] = {}

    def clear(self) -> None:
        self._seconds.clear()
        self._ended.clear()

    def medians(self) -> _Loop:
        pairs = [pair for ends in self._ended.values() for pair in itertools.pairwise(ends)]
        cycle = statistics.median(after[0] - before[0] for before, after in pairs)
        busy = statistics.median(after[1] - before[1] for before, after in pairs)
        return _Loop(cycle, busy, statistics.median(self._seconds))

    def apply(self, command: p.Apply) -> float:
        started = time.thread_time()
        norm = self._route.apply(command)
        ended = time.thread_time()
        self._seconds.append(ended - started)
        self._ended.setdefault(threading.get_ident(), []).append((time.perf_counter(), ended))
        return norm

    def drop(self, number: int) -> None:
        self._route.drop(number)
