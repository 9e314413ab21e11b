"""The run directory: who may write it, and its files.

config.yaml         the resolved configuration
metrics.jsonl       one line per evaluation, and a last line with the totals
histograms.jsonl    one line per trained day: staleness, gradient norms, waiting (see paceline.telemetry)
autopilot.jsonl     what an autopilot decided, and why (`pace: auto`)
lessons.jsonl       whom a group of a codistillation learned from, and since when
pace.trace          every event and command of the pace machine (see paceline.pace.trace)
skipped_rows.jsonl  rows that were left out: file, line, reason
curves/             TensorBoard
checkpoints/        see paceline.checkpoint
pace.asked          the pace that a person asked for, where a recovery finds it
requests/           what people ask of a run that is going on (see paceline.requests)
processes.json      of a run on a cluster: who runs where
.lock, .watched     locked by the process that writes here, and by the command that starts it again
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from paceline.batch import BadRow
from paceline.errors import RunDirError, RunDirInUse, StorageError

CONFIG, METRICS, TRACE, SKIPPED = "config.yaml", "metrics.jsonl", "pace.trace", "skipped_rows.jsonl"
ASKED = "pace.asked"
HISTOGRAMS, CHECKPOINTS, PROCESSES = "histograms.jsonl", "checkpoints", "processes.json"
AUTOPILOT = "autopilot.jsonl"
_TOGETHER = 256  # lines of the trace that are written at a time


@contextmanager
def storing(what: str | Path) -> Iterator[None]:
    """Turn a failure to write into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"{what}: the disk is full. Nothing that was stored before is lost: free some space, then --resume"
            ) from error
        raise StorageError(f"{what}: cannot be written: {error}") from error


class RunDir:
    """An open run directory; one process at a time. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: TextIO | None = None
        self._trace: TextIO | None = None
        self._told: list[str] = []  # lines of the trace that are not in its file yet
        self._named: set[tuple[str, int]] = set()

    def __enter__(self) -> RunDir:
        if self.path.exists() and not self.path.is_dir():
            raise RunDirError(f"{self.path}: a file, not a directory; choose another --run-dir")
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise RunDirInUse(
                f"{self.path}: in use by another run (process {owner}); wait for it, stop it, or take another --run-dir"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.close_trace()
        finally:
            if self._lock is not None:
                self._lock.close()

    def forget(self) -> None:
        """Nothing happened here worth going on with: the directory may be used for a new run."""
        with storing(self.path):
            for name in (CONFIG, METRICS, ASKED):
                (self.path / name).unlink(missing_ok=True)

    def close_trace(self) -> None:
        if self._trace is not None:
            trace, self._trace = self._trace, None
            with storing(self.path / TRACE), trace:
                trace.write("".join(self._told))
            self._told = []

    @property
    def started(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / CONFIG).exists()

    def begin(self, config: str, metrics_lines: int, trace_bytes: int, days: int, decisions: int) -> None:
        """Start or go on: what was written behind the last checkpoint, which is of so many whole days and decisions of
        an autopilot, is cut off, as it will happen again."""
        with storing(self.path):
            replace_text(self.path / CONFIG, config)
            replace_text(self.path / METRICS, "".join(whole_lines(self.path / METRICS)[:metrics_lines]))
            told = whole_lines(self.path / HISTOGRAMS)[:days]  # one for each trained day
            replace_text(self.path / HISTOGRAMS, "".join(told))
            if (self.path / AUTOPILOT).exists():
                replace_text(self.path / AUTOPILOT, "".join(whole_lines(self.path / AUTOPILOT)[:decisions]))
            if (self.path / SKIPPED).exists():
                named = whole_lines(self.path / SKIPPED)
                replace_text(self.path / SKIPPED, "".join(named))
                rows = read_lines(self.path / SKIPPED)
                self._named = {(str(row.get("file")), int(row.get("line", 0))) for row in rows}
            self._trace = open(self.path / TRACE, "a")  # noqa: SIM115  (closed by close_trace)
            self._trace.truncate(trace_bytes)
            self._trace.seek(0, os.SEEK_END)

    def metrics(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        with storing(self.path / METRICS), open(self.path / METRICS, "a") as file:
            file.write(json.dumps(line) + "\n")

    def histograms(self, line: dict[str, Any]) -> None:
        """Append a trained day's line to histograms.jsonl."""
        with storing(self.path / HISTOGRAMS), open(self.path / HISTOGRAMS, "a") as file:
            file.write(json.dumps(line) + "\n")

    def decision(self, line: dict[str, Any]) -> None:
        """Append a decision to autopilot.jsonl."""
        with storing(self.path / AUTOPILOT), open(self.path / AUTOPILOT, "a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics_lines(self) -> int:
        """Lines written so far."""
        return len(whole_lines(self.path / METRICS))

    def trace(self, line: str) -> None:
        """Append a line to the pace trace."""
        self._told.append(line + "\n")
        if len(self._told) >= _TOGETHER:
            self._write_trace()

    def _write_trace(self) -> None:
        told, self._told = self._told, []
        if self._trace is not None:
            with storing(self.path / TRACE):
                self._trace.write("".join(told))

    def trace_bytes(self) -> int:
        """Bytes of the trace, all of them on disk."""
        if self._trace is None:
            return 0
        self._write_trace()
        with storing(self.path / TRACE):
            self._trace.flush()
            return self._trace.tell()

    def skipped(self, rows: tuple[BadRow, ...]) -> None:
        """Name rows that were left out; a row that was named before a resume is not named again."""
        if not rows:
            return
        path = self.path / SKIPPED
        with storing(path), open(path, "a") as file:
            for row in rows:
                if (row.file, row.line) not in self._named:
                    file.write(json.dumps({"file": row.file, "line": row.line, "reason": row.reason}) + "\n")


def free_run_dir(job: Path) -> Path:
    """runs/<name>-<number>, by the folder's name if the file is just called job.yaml."""
    name = job.stem if job.stem != "job" else job.resolve().parent.name
    number = 0
    while (Path("runs") / f"{name}-{number}").exists():
        number += 1
    return Path("runs") / f"{name}-{number}"


def whole_lines(path: Path) -> list[str]:
    """The complete lines of a text file: a killed process may leave half a line at the end."""
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a kill or a full disk leaves the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text)
    temporary.replace(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines. Raises RunDirError naming the line that is none."""
    found = []
    for number, line in enumerate(whole_lines(path), 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RunDirError(
                f"{path}, line {number}: {line.strip()[:60]!r} is no JSON object; mend or remove the line"
            )
        found.append(value)
    return found


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl. Raises RunDirError if there is none."""
    path = run / METRICS
    if not path.exists():
        raise RunDirError(f"{run}: not a run directory (there is no {METRICS})")
    return read_lines(path)
