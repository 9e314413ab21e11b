"""The simulator's word on a candidate: a prefix of the log on the virtual cluster, with real gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from paceline import pace as p
from paceline.assembly import Job, assemble
from paceline.batch import Batch
from paceline.clusterspec import ClusterSpec
from paceline.config import BatchConfig, JobConfig
from paceline.data.moments import no_moments
from paceline.data.stream import Plan, day_batches
from paceline.planning.facts import Candidate
from paceline.planning.predict import on
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.virtual import VirtualBody
from paceline.runtimes.virtual_cluster import Doubles

_STACKED, _SMALL = 32, 100_000  # gradients in one go pay for models with few dense parameters
LEAST = 10  # updates, fewer tell nothing of a rate


@dataclass(frozen=True, slots=True)
class Check:
    """samples_per_s: applied ones, in virtual time, from the first tenth of the updates to the last; seconds: virtual
    ones in all; read, applied, dropped: samples of the whole prefix."""

    samples_per_s: float
    seconds: float
    read: int
    applied: int
    dropped: int


def with_candidate(config: JobConfig, candidate: Candidate) -> JobConfig:
    """The job as the candidate runs it, in one process or in a simulation."""
    batch = BatchConfig.model_validate({"global": candidate.global_, "local": candidate.local})
    changes = {"batch": batch, "workers": candidate.workers, "pace": candidate.pace, "cluster": None}
    return config.model_copy(update=changes)


def simulated(
    config: JobConfig,
    base: Path,
    candidate: Candidate,
    spec: ClusterSpec,
    rows: int,
    recorded: list[Doubles] | None = None,
    first_day: int = 0,
) -> Check | None:
    """Train `rows` samples (fewer if the log has fewer) at `candidate` on `spec`; None if that made too few updates to
    tell a rate. The end, where workers find nothing more to do, is left out like the beginning."""
    config = with_candidate(config, candidate)
    job = assemble(config, base, replicas=1)
    # A model of the user's own may do what cannot be stacked.
    small = job.shard.dense.flat.numel() < _SMALL and ":" not in config.model.name
    stacked = _STACKED if small else 1
    body = VirtualBody(on(spec, candidate), job.direct, job.replicas, job.statistics, recorded, stacked)
    marks: list[tuple[float, int]] = []

    def note(coordinator: Coordinator) -> None:
        marks.append((body.clock(), coordinator.machine.account.applied))

    machine = p.begin(candidate.pace.build(candidate.gradients))
    coordinator = Coordinator(
        machine, job.route, lambda _: None, on_update=note, clock=body.clock, statistics=job.statistics
    )
    with contextlib.closing(_prefix(job, candidate.local, rows, first_day)) as source:
        body.run_day(coordinator, source)
    if len(marks) < LEAST:
        return None
    cut = len(marks) // 10
    (begin, before), (end, after) = marks[cut], marks[-1 - cut]
    account = machine.account
    rate = (after - before) / (end - begin) if end > begin else float("inf")
    return Check(rate, body.clock(), account.read, account.applied, account.dropped)


def _prefix(job: Job, size: int, rows: int, first_day: int) -> Generator[Batch]:
    """Whole batches of the first `rows` samples, day after day."""
    plan, left = Plan(0, size, moments=no_moments(len(job.schema.dense))), rows
    for files in job.days[first_day:]:
        with contextlib.closing(day_batches(job.log, files, plan)) as source:
            for batch in source:
                if left <= 0:
                    return
                left -= batch.samples
                yield batch
