"""Churn: by how much the predictions of one run's model differ from another's on the same rows.

churn = mean over rows of | p (first run) - p (other run) |   (Anil et al., ICLR 2018: mean absolute difference)

It is meant for complete, independent retrains. Two groups of one codistillation agree by construction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paceline.assembly import day_files
from paceline.batch import Batch, Floats
from paceline.data.files import expand
from paceline.data.stream import Plan, day_batches
from paceline.errors import ConfigError
from paceline.evaluate import SCORING_BATCH, load_run, run_config
from paceline.runtimes.scoring import score


@dataclass(frozen=True, slots=True)
class Churn:
    """Of a run against the first one, on `rows` rows."""

    run: str
    rows: int
    churn: float


def predictions(run: Path, files: list[str]) -> npt.NDArray[np.float64]:
    """Click probabilities of the run's newest checkpoint on every row of `files`, in their order, [rows]."""
    trained = load_run(run)
    if trained.job.config.interactions is not None:
        raise ConfigError(f"--churn: {run} ranks items; churn is of click probabilities")
    found: dict[int, Floats] = {}
    plan = Plan(0, SCORING_BATCH, moments=trained.moments, frozen=True)

    def take(number: int, batch: Batch, logits: Floats) -> None:
        found[number] = logits

    with contextlib.closing(day_batches(trained.job.log, files, plan)) as source:
        score(trained.job.route, trained.job.replicas, source, take, trained.job.statistics.pooled)
    logits = np.concatenate([found[number] for number in sorted(found)]).astype(np.float64)
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)))


def churn(runs: Sequence[Path], data: Sequence[str] = ()) -> list[Churn]:
    """Of every run but the first against the first. data: paths, globs or URLs (default: the first run's last day).

    Raises ConfigError if there is one run only, or if runs do not read the same rows of the data.
    """
    if len(runs) < 2:
        raise ConfigError("--churn compares models: name two run directories or more")
    if data:
        files = [path for pattern in data for path in expand(pattern, Path.cwd())]
    else:
        files = day_files(run_config(runs[0]), runs[0])[-1]
    first, *others = (predictions(run, files) for run in runs)
    found = []
    for run, other in zip(runs[1:], others, strict=True):
        if other.shape != first.shape:
            raise ConfigError(
                f"--churn: {runs[0]} reads {len(first):,} rows of the data and {run} {len(other):,}; runs that are"
                " compared need the same format, features and on_bad_row"
            )
        found.append(Churn(str(run), len(first), float(np.abs(first - other).mean())))
    return found
