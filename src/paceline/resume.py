"""What a run may go on with, and what it may not."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from paceline.assembly import Job
from paceline.config import JobConfig
from paceline.errors import RunDirError


def resolved(job: Job) -> JobConfig:
    """The job's configuration with the files themselves for the patterns, so that it means the same anywhere."""
    config, interactions = job.config, job.config.interactions
    days = job.days if interactions is None else job.days[:1]
    if interactions is not None and job.interactions is not None and interactions.test is not None:
        interactions = interactions.model_copy(update={"test": job.interactions.tests})
    data = config.data.model_copy(update={"days": days})
    return config.model_copy(update={"data": data, "interactions": interactions})


def check_same_job(old: JobConfig, new: JobConfig, run_dir: Path) -> None:
    """A run goes on with the same data layout, model and kinds of optimizer. Pace, workers, batches, rates and further
    days may change. Raises RunDirError naming the key."""
    fixed: list[tuple[str, Any, Any]] = [
        ("data.format", old.data.format, new.data.format),
        ("data.delimiter", old.data.delimiter, new.data.delimiter),
        ("data.quote", old.data.quote, new.data.quote),
        ("data.columns", old.data.columns, new.data.columns),
        ("features", old.features, new.features),
        ("interactions", _fixed(old), _fixed(new)),
        ("model", old.model, new.model),
        ("normalise", old.normalise, new.normalise),
        ("optimizer.sparse.name", old.optimizer.sparse.name, new.optimizer.sparse.name),
        ("optimizer.dense.name", old.optimizer.dense.name, new.optimizer.dense.name),
        ("seed", old.seed, new.seed),
        ("codistill.groups", old.codistill and old.codistill.groups, new.codistill and new.codistill.groups),
        ("codistill.group", old.codistill and old.codistill.group, new.codistill and new.codistill.group),
    ]
    for key, before, now in fixed:
        if before != now:
            path, was, is_now = _difference(key, before, now)
            raise RunDirError(f"{run_dir}: {path} was {was!r} and is now {is_now!r}; a run cannot go on with another")


def _fixed(config: JobConfig) -> Any:
    """What of `interactions` says which samples there are; epochs may be added, and rankings be others."""
    if config.interactions is None:
        return None
    return config.interactions.model_dump(exclude={"epochs", "ranking", "test"})


def file_names(days: list[list[str]]) -> list[list[str]]:
    """The names of the files of each day, without their folders."""
    return [[path.rsplit("/", 1)[-1] for path in files] for files in days]


def check_same_days(before: list[list[str]], days: list[list[str]], run_dir: Path) -> None:
    """Days that were read (`file_names` of them) have to be the same files still, or rows would be read twice or never.
    Raises RunDirError naming the day."""
    for day, (was, now) in enumerate(itertools.zip_longest(before, file_names(days[: len(before)]))):
        if was != now:
            raise RunDirError(
                f"{run_dir}: data.days: day {day} was {', '.join(was)} and is now"
                f" {', '.join(now or ['missing'])}; a run goes on with the same days (further ones may follow)"
            )


def _difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place where two parts of a configuration differ."""
    before, now = (v.model_dump() if isinstance(v, BaseModel) else v for v in (before, now))
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                return _difference(f"{key}.{name}", before.get(name), now.get(name))
    return key, before, now
