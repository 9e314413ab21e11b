"""What people ask of a run that is going on.

A request is a file RUN_DIR/requests/<name>.<kind>; the run answers beside it, in <name>.json. So whoever may write the
run directory may ask, from any machine that sees it, and nothing has to listen on the network for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
import time
from pathlib import Path
from typing import Any, TextIO

from paceline.errors import RunDirError
from paceline.rundir import replace_text, storing

REQUESTS = "requests"
_WATCHED = ".watched"


def waiting(run: Path, kind: str) -> list[Path]:
    """The requests of a kind that are neither taken up nor answered, oldest first."""
    folder = run / REQUESTS
    return sorted(folder.glob(f"*.{kind}")) if folder.exists() else []


def answer(path: Path, told: dict[str, Any]) -> None:
    """Answer the request `path`. {"refused": why} refuses it."""
    with contextlib.suppress(OSError):
        replace_text(path.with_suffix(".json"), json.dumps(told))
        path.unlink(missing_ok=True)


def ask(run: Path, kind: str, text: str, patience: float, otherwise: str) -> dict[str, Any]:
    """Ask the run that is going on in a directory, and wait `patience` seconds for its answer. otherwise: what to do
    if nothing runs there. Who takes a request up may remove its file and answer later. Raises RunDirError if nothing
    runs there, it refuses, or no answer comes."""
    with storing(run / REQUESTS):
        if not is_running(run):
            raise RunDirError(f"{run}: nothing is running there; {otherwise}")
        (run / REQUESTS).mkdir(exist_ok=True)
        path = run / REQUESTS / f"{time.time_ns()}-{secrets.token_hex(2)}.{kind}"
        replace_text(path, text)
        answered, until = path.with_suffix(".json"), time.monotonic() + patience
        while not answered.exists():
            if time.monotonic() > until or not is_running(run):
                _withdraw(run, path, patience)
            time.sleep(0.02)
        told: dict[str, Any] = json.loads(answered.read_text())
        answered.unlink()
    if "refused" in told:
        raise RunDirError(f"{run}: {told['refused']}")
    return told


def _withdraw(run: Path, path: Path, patience: float) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        if path.with_suffix(".json").exists():
            return  # the answer has just come
        raise RunDirError(
            f"{run}: it took the request up, and ended or gave no answer in {patience:g} s; see what it says itself"
        ) from None
    raise RunDirError(f"{run}: it ended, or gave no answer in {patience:g} s; nothing was changed")


def watch_over(run: Path) -> TextIO | None:
    """For who starts a run's processes again: it counts as running until the file that is returned is closed. None if
    somebody else watches over it."""
    with storing(run):
        run.mkdir(parents=True, exist_ok=True)
        file = open(run / _WATCHED, "a+")  # noqa: SIM115  (the caller closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def is_running(run: Path) -> bool:
    """Whether a process has the run directory in use, or watches over those that do."""
    return any(_is_locked(run / name) for name in (".lock", _WATCHED))


def _is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
