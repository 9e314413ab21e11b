"""A job on a cluster that is only described: the same run directory and metrics, in virtual time."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from paceline.assembly import Job, assemble
from paceline.clusterfile import load_times
from paceline.clusterspec import ClusterSpec, Compute
from paceline.config import JobConfig
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import RunDirError
from paceline.rundir import replace_text, storing
from paceline.runtimes.local import settle_thread
from paceline.runtimes.virtual import VirtualBody
from paceline.training import train
from paceline.watcher import Silent, Watcher

CLUSTER = "cluster.yaml"
_ROUNDS = 9


def simulate(
    config: JobConfig,
    spec: ClusterSpec,
    base: Path,
    run_dir: Path,
    cluster_base: Path | None = None,
    resume: bool = False,
    watcher: Watcher | None = None,
    threads: int | None = None,
    stacked: int = 1,
) -> dict[str, Any]:
    """Run the job on the described cluster and return its last metrics line.

    base, cluster_base: what relative paths in job and cluster are relative to; threads: real ones that compute
    (default: one for each core; their number changes no result); stacked: gradients of small models that one thread
    computes in one go, which is quicker and the same but for rounding. The workers are the cluster's.
    Raises a PacelineError for everything that can be foreseen.
    """
    watcher = watcher or Silent()
    config = config.model_copy(update={"workers": spec.workers})
    _warn(config, spec, watcher)
    times = load_times(spec, cluster_base or base)
    if spec.compute.measure:
        spec = _measured(config, spec, base, run_dir, resume, watcher)

    def body(job: Job) -> VirtualBody:
        path = run_dir / CLUSTER
        with storing(path):
            replace_text(path, yaml.safe_dump(spec.model_dump(mode="json", exclude_unset=True), sort_keys=False))
        return VirtualBody(spec, job.direct, job.replicas, job.statistics, times, stacked)

    replicas = min(threads or os.cpu_count() or 1, spec.workers)
    return train(config, base, run_dir, resume, watcher, body, replicas)


def _warn(config: JobConfig, spec: ClusterSpec, watcher: Watcher) -> None:
    """Tell of settings that are legal and seldom meant."""
    if config.inject:
        watcher.note("inject is for real workers: slow and dying ones of a simulation are in cluster.yaml")
    if config.compress is not None and config.compress.sums < 1:
        watcher.note("compress.activations: a simulation moves rows, of which nothing is left out")
    if config.batch.local is None and config.local_batch * spec.workers > config.batch.global_:
        watcher.note(
            f"batch.global ({config.batch.global_:,}) does not divide by {spec.workers:,} workers: each gradient is of"
            " the whole global batch; set batch.local"
        )
    at_once = config.pace.build(config.gradients).round
    if at_once is not None and at_once < spec.workers:
        watcher.note(
            f"{config.pace.name} has {at_once:,} gradients computed at a time, so {spec.workers - at_once:,} of"
            f" {spec.workers:,} workers wait; a smaller batch.local or a larger batch.global employs more"
        )
    share = spec.stragglers.share
    if share and spec.stragglers.spells is None and int(share * spec.workers + 1e-9) == 0:
        watcher.note(f"stragglers.share ({share:g}) of {spec.workers} workers is less than one: nobody is slow")


def _measured(
    config: JobConfig, spec: ClusterSpec, base: Path, run_dir: Path, resume: bool, watcher: Watcher
) -> ClusterSpec:
    """The specification with this machine's times; those of the run itself when it goes on."""
    stored = run_dir / CLUSTER
    if resume and stored.exists():
        try:
            compute = Compute.model_validate(yaml.safe_load(stored.read_text())["compute"])
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise RunDirError(f"{stored}: cannot be read as a cluster ({error}); remove it to measure again") from None
    else:
        fixed_ms, per_sample_us = measure(config, base)
        watcher.note(f"measured on this machine: {fixed_ms:.3g} ms a gradient and {per_sample_us:.3g} µs a sample")
        times = {"fixed_ms": fixed_ms, "per_sample_us": per_sample_us, "measure": False}
        compute = spec.compute.model_copy(update=times)
    return spec.model_copy(update={"compute": compute})


def measure(config: JobConfig, base: Path) -> tuple[float, float]:
    """`_measure` in a thread as workers have it: the caller's own keeps its threads and its denormal numbers."""
    with ThreadPoolExecutor(1, "measure", settle_thread) as pool:
        return pool.submit(_measure, config, base).result()


def _measure(config: JobConfig, base: Path) -> tuple[float, float]:
    """(milliseconds a gradient takes however small, microseconds for each sample) of one worker with one thread:
    medians over local batches of two sizes from the first file. Changes no parameter."""
    job = assemble(config, base, replicas=1)
    replica = job.replicas[0]
    job.shard.pull_dense(replica.flat)
    sizes = sorted({max(config.local_batch // 4, 1), config.local_batch})
    took: list[float] = []
    for size in sizes:
        plan = Plan(0, size, moments=no_moments(len(job.schema.dense)))
        seconds = []
        with contextlib.closing(day_batches(job.source, job.days[0], plan)) as source:
            for batch, _ in zip(source, range(_ROUNDS), strict=False):
                for _ in range(2):  # the first time compiles and warms up
                    started = time.perf_counter()
                    replica.gradient(batch, job.route.read(batch.flat_ids()))
                    seconds.append(time.perf_counter() - started)
        took.append(statistics.median(seconds))
    if len(sizes) == 1:
        return took[0] * 1e3, 0.0
    per_sample = max((took[1] - took[0]) / (sizes[1] - sizes[0]), 0.0)
    return max(took[1] - sizes[1] * per_sample, 0.0) * 1e3, per_sample * 1e6
