"""Evaluation of a trained state on files, and of a run directory from the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from paceline import checkpoint
from paceline.assembly import Job, assemble
from paceline.batch import Batch, Floats, Span
from paceline.config import JobConfig
from paceline.data.files import expand
from paceline.data.moments import Moments, no_moments
from paceline.data.stream import Plan, day_batches
from paceline.errors import DataError, RunDirError
from paceline.jobfile import check
from paceline.metrics import Counters
from paceline.rankings import flat, rank_tests
from paceline.rundir import CONFIG, storing
from paceline.runtimes.scoring import score

SCORING_BATCH = 4096


def evaluate_files(job: Job, files: list[str], day: int, moments: Moments) -> Counters:
    """Counters of the job's state on `files`; nothing is learned from them. Raises DataError for bad input."""
    counters = Counters()
    with contextlib.closing(
        day_batches(job.log, files, Plan(day, SCORING_BATCH, moments=moments, frozen=True))
    ) as source:
        score(
            job.route,
            job.replicas,
            source,
            lambda _, b, logits: counters.add(logits, b.labels, b.groups),
            job.statistics.pooled,
        )
    return counters


def need_both_classes(counters_rows: int, positives: int, files: list[str], day: int) -> None:
    """Raise DataError if a day has one class only: AUC is not defined on it."""
    if positives in (0, counters_rows):
        only = 0 if positives == 0 else 1
        raise DataError(
            f"{', '.join(files)}: each of the {counters_rows:,} rows of day {day} has label {only}; a ranking cannot"
            " be evaluated on one class. Check features.label, or set evaluate: none"
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """A run's newest checkpoint, loaded. moments: what numbers are standardised with."""

    job: Job
    moments: Moments
    checkpoint: Path
    updates: int


def load_run(run: Path, workers: int | None = None) -> Trained:
    """Load a run directory for scoring. Raises RunDirError if there is no run or no checkpoint in it."""
    config = run_config(run)
    if config.interactions is None:
        # The days of the run itself are not read again: only its schema and state are needed.
        config = config.model_copy(update={"data": config.data.model_copy(update={"days": []})})
    threads = workers or min(config.workers, os.cpu_count() or 1)  # a run may have had thousands of virtual workers
    job = assemble(config, run, threads, device="cpu")
    loaded = checkpoint.load(run / "checkpoints", job.shard, dense_optimizer=False, statistics=job.statistics)
    if loaded is None:
        raise RunDirError(f"{run}: there is no checkpoint yet; let the run reach one (checkpoint.every) first")
    moments = (
        Span.from_json(loaded.state["next"]).moments if loaded.state["next"] else no_moments(len(job.schema.dense))
    )
    return Trained(job, moments, loaded.path, job.shard.version)


def run_config(run: Path) -> JobConfig:
    """The resolved configuration of a run directory."""
    path = run / CONFIG
    if not path.exists():
        raise RunDirError(f"{run}: not a run directory (there is no {CONFIG})")
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunDirError(f"{path}: cannot be read ({error}); put the job's configuration there") from error
    if not isinstance(values, dict):
        raise RunDirError(f"{path}: holds no configuration; put the job's configuration there")
    return check(values, str(path))


def evaluate_run(run: Path | str, data: list[str], workers: int | None = None) -> dict[str, Any]:
    """Metrics of a run's newest checkpoint on the files that `data` (paths, globs or URLs) names; of interactions,
    those of `paceline.rankings.rank_tests` by names with slashes, ranked among the items that the run was trained on
    (its files are read again) and these."""
    trained = load_run(Path(run), workers)
    files = [path for pattern in data for path in expand(pattern, Path.cwd())]
    if trained.job.interactions is not None:
        return flat(rank_tests(trained.job, trained.job.days[0], files))
    return evaluate_files(trained.job, files, 0, trained.moments).result()


def predict_run(run: Path | str, data: list[str], out: Path | str, workers: int | None = None) -> int:
    """Write a Parquet file with `file`, `row` (from 0), `score` (click probability) and, where the data has one,
    `label`, in the order of the data. Returns the number of rows. The label column may be absent.
    """
    out = Path(out)
    if out.exists() and not out.is_file():
        raise RunDirError(f"{out}: not a plain file; name another --out")
    if run_config(Path(run)).interactions is not None:
        raise RunDirError(f"{run}: its model ranks items and predicts no clicks; use `paceline evaluate`")
    trained = load_run(Path(run), workers)
    files = [path for pattern in data for path in expand(pattern, Path.cwd())]
    # Neither the label nor the group is needed for a score.
    schema = dataclasses.replace(trained.job.schema, group=None)
    log = dataclasses.replace(trained.job.log, schema=schema, labelled=False)
    source = day_batches(log, files, Plan(0, SCORING_BATCH, moments=trained.moments, frozen=True))
    columns = pa.schema(
        [
            ("file", pa.dictionary(pa.int32(), pa.string())),
            ("row", pa.int64()),
            ("score", pa.float32()),
            ("label", pa.float32()),
        ]
    )
    temporary = out.with_name(f".{out.name}.writing")
    rows = 0
    try:
        with storing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            with pq.ParquetWriter(str(temporary), columns) as writer:
                waiting: dict[int, Any] = {}

                def take(number: int, batch: Batch, logits: Floats) -> None:
                    nonlocal rows
                    waiting[number] = _table(columns, files, batch, logits)
                    while rows_next[0] in waiting:
                        table = waiting.pop(rows_next[0])
                        writer.write_table(table)
                        rows += table.num_rows
                        rows_next[0] += 1

                rows_next = [0]
                with contextlib.closing(source):
                    score(trained.job.route, trained.job.replicas, source, take, trained.job.statistics.pooled)
            temporary.rename(out)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return rows


def _table(schema: Any, files: list[str], batch: Batch, logits: Floats) -> Any:
    probability = 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))
    assert batch.places is not None
    names = pa.DictionaryArray.from_arrays(pa.array(batch.places[:, 0].astype(np.int32)), pa.array(files))
    label = pa.array(batch.labels.astype(np.float32), from_pandas=True)
    columns = [
        names,
        pa.array(np.ascontiguousarray(batch.places[:, 1])),
        pa.array(probability.astype(np.float32)),
        label,
    ]
    return pa.table(columns, schema=schema)
