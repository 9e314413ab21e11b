"""The keeper of a run in one process: its snapshots are copied at once and written in the background, one at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from paceline import checkpoint
from paceline.errors import LossError, PacelineError
from paceline.exchange.direct import DirectRoute
from paceline.rundir import storing
from paceline.runtimes.statistics import Statistics
from paceline.threads import SureThread


class Keeper:
    """Snapshots of a run under `folder`, of which the newest `keep` are kept; here of the one shard behind `route`.

    What the writing thread raises (StorageError, LossError) is raised once, by the next `free` or `wait`; the snapshot
    committed before stays the one that the next goes on from. Called by one thread at a time.
    """

    def __init__(self, folder: Path, keep: int, route: DirectRoute | None) -> None:
        self.folder, self.keep, self._route = folder, keep, route
        self.since: list[checkpoint.Piece] | None = None  # the last committed snapshot's, shard by shard
        self._thread: SureThread | None = None
        self._failure: BaseException | None = None

    def load(self, statistics: Statistics) -> checkpoint.Loaded | None:
        """Clear what a killed process left and put the newest whole snapshot into the shards. None if there is none."""
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.clean(self.folder)
        found = checkpoint.newest(self.folder)
        self._restore(found, statistics)
        return found

    def _restore(self, found: checkpoint.Loaded | None, statistics: Statistics) -> None:
        if found is not None:
            assert self._route is not None
            checkpoint.restore(found, self._route.shard, statistics=statistics)
            self.since = list(found.pieces) if len(found.pieces) == 1 else None

    def take(self) -> Any:
        """A copy of what changed since the last committed snapshot, while nobody changes anything."""
        assert self._route is not None
        with self._route.whole():  # a worker that holds a lease may be pulling, and so creating rows
            return checkpoint.take(self._route.shard, since=None if self.since is None else self.since[0])

    def _pieces(self, copy: Any) -> list[checkpoint.Piece]:
        """Write the copy; in the writing thread."""
        return [checkpoint.write(self.folder, copy)]

    def free(self) -> bool:
        """Whether nothing is being written. Raises what the writer raised."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self.wait()
        return True

    def write(self, copy: Any, state: dict[str, Any], sound: int, statistics: dict[str, Tensor] | None) -> None:
        """Write and commit in the background; call `wait` before the copy is taken. sound, statistics: see `commit`.
        What is in `state` may change as soon as this returns."""
        self.wait()
        arguments = (copy, json.loads(json.dumps(state)), sound, statistics)
        self._thread = SureThread(target=self._write, args=arguments, name="paceline-snapshot")
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

    def _write(self, copy: Any, state: dict[str, Any], sound: int, statistics: dict[str, Tensor] | None) -> None:
        try:
            pieces = self._pieces(copy)
            try:
                checkpoint.commit(self.folder, pieces[0].version, pieces, state, self.keep, sound, statistics)
            except BaseException:
                checkpoint.discard(self.folder, pieces)
                raise
            self.since = pieces
        except BaseException as error:  # raised again by whoever asks next
            self._failure = error
