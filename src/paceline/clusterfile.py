"""Reading cluster.yaml and the recorded times it may name."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from paceline.clusterspec import ClusterSpec
from paceline.errors import ConfigError, DataError
from paceline.jobfile import load
from paceline.runtimes.virtual_cluster import Doubles


def load_cluster(path: Path, overrides: list[str] | None = None) -> ClusterSpec:
    """Read cluster.yaml and apply `key.key=value` overrides. Raises ConfigError, a line for each mistake."""
    return load(path, overrides or [], ClusterSpec, "a cluster is a mapping of keys (workers, compute, ...)")


def load_times(spec: ClusterSpec, base: Path) -> list[Doubles] | None:
    """Recorded times, seconds, an array for each worker in the order of their first lines; None if none are named.

    The file is CSV with a header and the columns `worker` (any name) and `seconds`, a line for each gradient in the
    order in which the worker computed them. Raises ConfigError or DataError naming the line.
    """
    if spec.stragglers.trace is None:
        return None
    path = base / spec.stragglers.trace
    found: dict[str, list[float]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"worker", "seconds"} - set(reader.fieldnames or ())
            if missing:
                raise DataError(f"{path}, line 1: no column {min(missing)!r}; the columns are worker and seconds")
            for row in reader:
                found.setdefault(row["worker"], []).append(_seconds(path, reader.line_num, row["seconds"]))
    except FileNotFoundError:
        raise ConfigError(f"stragglers.trace: {path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"stragglers.trace: {path} is a folder; name a CSV file with worker,seconds") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"stragglers.trace: {path} cannot be read as CSV: {error}") from None
    if not found:
        raise DataError(f"{path}: no times in it; write a line `worker,seconds` for each gradient")
    return [np.array(times) for times in found.values()]


def _seconds(path: Path, line: int, text: str | None) -> float:
    try:
        seconds = float(text or "")
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise DataError(f"{path}, line {line}: {text or ''!r} is no time in seconds; it must be a number above 0")
    return seconds
