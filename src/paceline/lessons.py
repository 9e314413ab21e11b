"""Codistillation, a group's side: when it turns to newer copies of the others, and which.

Groups meet in one run directory, RUN_DIR/group-0, RUN_DIR/group-1, ..., each with its own run, and nothing else: a
group's checkpoints are what the others learn from. So a group may be a process, a cluster, or not running any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paceline import checkpoint
from paceline.codistillconfig import CodistillConfig
from paceline.errors import RunDirError
from paceline.rundir import CHECKPOINTS, replace_text, storing, whole_lines
from paceline.runtimes.coordinator import Coordinator

LESSONS = "lessons.jsonl"


def group_folder(run: Path, group: int) -> Path:
    """Where a group's run is kept."""
    return run / f"group-{group}"


class Lessons:
    """Of one group. run: its own directory, beside those of the others; note: tells a person."""

    def __init__(self, config: CodistillConfig, run: Path, note: Callable[[str], None]) -> None:
        self._config, self._run, self._note = config, run, note
        mine = f"group-{config.group}"
        if run.resolve().name != mine:
            raise RunDirError(
                f"{run}: groups find each other by the names of their directories; this one's has to be {mine}, beside"
                f" those of the others: --run-dir DIR/{mine}"
            )
        others = [group for group in range(config.groups) if group != config.group]
        self._peers = {group: group_folder(run.parent, group) / CHECKPOINTS for group in others}
        self._exchanges = 0  # that were due until now
        self._teachers: tuple[str, ...] = ()
        self._missed = False
        self._told = 0  # lines of LESSONS

    def begin(self, state: dict[str, Any] | None) -> tuple[str, ...]:
        """The teachers to begin with. state: of the snapshot that the run goes on from."""
        if (self._run / LESSONS).exists():  # what came after the snapshot will come again
            told = whole_lines(self._run / LESSONS)[: 0 if state is None else state.get("told", 0)]
            with storing(self._run / LESSONS):
                replace_text(self._run / LESSONS, "".join(told))
            self._told = len(told)
        if state is not None:
            self._exchanges = state["exchanges"]
            found = [self._run.parent / path for path in state["teachers"]]
            # Copies of then may be gone; the next exchange is not far, and an older lesson is no use.
            self._teachers = tuple(map(str, found)) if all(checkpoint.is_whole(path) for path in found) else ()
            if found and not self._teachers:
                self._teachers = self._newest() or ()
        return self._teachers

    def follow(self, coordinator: Coordinator) -> None:
        """Take the newest copies if an exchange is due with the samples read until now."""
        read = coordinator.machine.account.read
        due = 0 if read < self._config.burn_in else 1 + (read - self._config.burn_in) // self._config.every
        if due <= self._exchanges:
            return
        found = self._newest()
        if found is None:  # goes on alone; asks again with the next batch
            if not self._missed:
                self._note(f"{read:,} samples: another group has no checkpoint yet; burning in goes on")
            self._missed = True
            return
        self._exchanges, self._missed = due, False
        if found != self._teachers:
            self._teachers = coordinator.teachers = found
            names = [str(Path(path).relative_to(self._run.parent)) for path in found]
            with storing(self._run / LESSONS), open(self._run / LESSONS, "a") as file:
                file.write(json.dumps({"samples_read": read, "teachers": names}) + "\n")
            self._told += 1

    def _newest(self) -> tuple[str, ...] | None:
        """The newest copy of every other group, or None while one has none."""
        found = [next(iter(checkpoint.committed(folder)), None) for folder in self._peers.values()]
        return None if None in found else tuple(str(path) for path in found)

    def to_json(self) -> dict[str, Any]:
        """What a snapshot keeps."""
        names = [str(Path(path).relative_to(self._run.parent)) for path in self._teachers]
        return {"exchanges": self._exchanges, "teachers": names, "told": self._told}
