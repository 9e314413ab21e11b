"""The keeper of a run in one process: its snapshots are copied at once and written in the background, one at a time."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from paceline import checkpoint
from paceline.errors import LossError, PacelineError
from paceline.params.shard import Shard
from paceline.rundir import storing
from paceline.runtimes.statistics import Statistics


class Keeper:
    """Snapshots of one shard under `folder`, of which the newest `keep` are kept.

    What the writing thread raises (StorageError, LossError) is raised once, by the next `free` or `wait`; the snapshot
    committed before stays the one that the next goes on from. Called by one thread at a time.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.since: checkpoint.Piece | None = None  # of the last committed snapshot
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def load(self, shard: Shard, statistics: Statistics) -> checkpoint.Loaded | None:
        """Clear what a killed process left and put the newest whole snapshot into `shard`. None if there is none."""
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.folder)
        found = checkpoint.load(self.folder, shard, statistics=statistics)
        if found is not None:
            self.since = found.piece_of(0, 1)
        return found

    def free(self) -> bool:
        """Whether nothing is being written. Raises what the writer raised."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        return True

    def write(
        self, copy: checkpoint.Copy, state: dict[str, Any], sound: int, statistics: dict[str, Tensor] | None
    ) -> None:
        """Write and commit in the background; call `wait` before the copy is taken. sound, statistics: see `commit`.
        What is in `state` may change as soon as this returns."""
        self.wait()
        arguments = (copy, json.loads(json.dumps(state)), sound, statistics)
        self._thread = threading.Thread(target=self._write, args=arguments, name="paceline-snapshot")
        self._thread.start()

    def wait(self) -> None:
        """Until what is being written is committed. Raises what the writer raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def settled(self, error: BaseException) -> BaseException:
        """Wait. What ended the run: `error`, or the writer's failure, without which there would be no way on. But a
        loss that is not finite is the graver."""
        try:
            self.wait()
        except PacelineError as failure:
            return error if isinstance(error, LossError) else failure
        return error

    def close(self) -> None:
        """Wait, whatever comes of it."""
        if self._thread is not None:
            self._thread.join()

    def _write(
        self, copy: checkpoint.Copy, state: dict[str, Any], sound: int, statistics: dict[str, Tensor] | None
    ) -> None:
        try:
            piece = checkpoint.write(self.folder, copy)
            try:
                checkpoint.commit(self.folder, copy.version, [piece], state, self.keep, sound, statistics)
            except BaseException:
                checkpoint.discard(self.folder, [piece])
                raise
            self.since = piece
        except BaseException as error:  # raised again by whoever asks next
            self._failure = error
