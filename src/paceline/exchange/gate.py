"""A lock that many may hold to read, or one to change."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Readers go side by side; who changes something is alone. Who waits to change goes before those who come to read,
    so that updates do not starve. Nobody may hold it twice."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._reading = 0
        self._waiting = 0
        self._changing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Nobody changes anything meanwhile."""
        with self._turn:
            while self._changing or self._waiting:
                self._turn.wait()
            self._reading += 1
        try:
            yield
        finally:
            with self._turn:
                self._reading -= 1
                if not self._reading:
                    self._turn.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody reads or changes anything meanwhile."""
        with self._turn:
            self._waiting += 1
            try:
                while self._changing or self._reading:
                    self._turn.wait()
            except BaseException:
                self._turn.notify_all()  # those behind it need not wait for it any more
                raise
            finally:
                self._waiting -= 1
            self._changing = True
        try:
            yield
        finally:
            with self._turn:
                self._changing = False
                self._turn.notify_all()
