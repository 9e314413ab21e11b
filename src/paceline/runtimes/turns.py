"""A worker's turn to compute: one at a time in a process, and slower or deadly where a person wants that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager


class Killed(Exception):
    """This worker is to die here (`inject`)."""


class Turn(AbstractContextManager[None]):
    """Held while a gradient is computed. slow: the turn takes so many times as long as the computing; room: for how
    many at a time, shared by the threads of a process; dies: asked at the start of each turn."""

    def __init__(
        self, slow: float = 1.0, room: threading.Semaphore | None = None, dies: Callable[[], bool] = lambda: False
    ) -> None:
        self._slow, self._room, self._dies = slow, room, dies
        self._started = 0.0

    def __enter__(self) -> None:
        if self._dies():
            raise Killed
        if self._room is not None:
            self._room.acquire()
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._slow > 1.0:
            time.sleep((self._slow - 1.0) * (time.monotonic() - self._started))
        if self._room is not None:
            self._room.release()
