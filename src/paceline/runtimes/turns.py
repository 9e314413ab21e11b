"""A worker's turn to compute: one at a time in a process, and slower or deadly where a person wants that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager


class Killed(Exception):
    """This worker is to die here (`inject`)."""


class Busy:
    """How long a process has computed, of the time since it first did. Only one computes at a time."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def begin(self) -> float:
        """A turn begins; the moment."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now

    def share(self) -> float:
        """From 0 to 1."""
        return 0.0 if self._since is None else self.seconds / max(time.monotonic() - self._since, 1e-9)


class Turn(AbstractContextManager[None]):
    """Held while a gradient is computed. slow: the turn takes so many times as long as the computing; room: for how
    many at a time, shared by the threads of a process; dies: asked at the start of each turn; busy: counts it.
    """

    def __init__(
        self,
        slow: float = 1.0,
        room: threading.Semaphore | None = None,
        dies: Callable[[], bool] = lambda: False,
        busy: Busy | None = None,
    ) -> None:
        self._slow, self._room, self._dies, self._busy = slow, room, dies, busy or Busy()
        self._started = 0.0
        self.seconds = 0.0  # that the last turn took

    def __enter__(self) -> None:
        if self._dies():
            raise Killed
        if self._room is not None:
            self._room.acquire()
        self._started = self._busy.begin()

    def __exit__(self, *_: object) -> None:
        if self._slow > 1.0:
            time.sleep((self._slow - 1.0) * (time.monotonic() - self._started))
        self.seconds = time.monotonic() - self._started
        self._busy.seconds += self.seconds
        if self._room is not None:
            self._room.release()
