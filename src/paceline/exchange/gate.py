"""A lock that many may hold to read, or one to change."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from types import TracebackType


class Gate:
    """Readers go side by side; who changes something is alone. Who waits to change goes before those who come to read,
    so that updates do not starve. Nobody may hold it twice."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._reading = 0
        self._waiting = 0
        self._changing = False
        self._shared, self._alone = _Shared(self), _Alone(self)

    def shared(self) -> AbstractContextManager[None]:
        """Nobody changes anything meanwhile."""
        return self._shared

    def alone(self) -> AbstractContextManager[None]:
        """Nobody reads or changes anything meanwhile."""
        return self._alone

    def begin_reading(self) -> None:
        """Wait until nobody changes anything, or waits to."""
        with self._lock:
            while self._changing or self._waiting:
                self._turn.wait()
            self._reading += 1

    def end_reading(self) -> None:
        """Let those go on who wait to change something."""
        with self._lock:
            self._reading -= 1
            if not self._reading and self._waiting:
                self._turn.notify_all()

    def begin_changing(self) -> None:
        """Wait until nobody reads or changes anything."""
        with self._lock:
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

    def end_changing(self) -> None:
        """Let everybody go on."""
        with self._lock:
            self._changing = False
            self._turn.notify_all()


# Classes, not generators: a pull passes here several times, and a small gradient consists of calls.
class _Shared(AbstractContextManager[None]):
    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.begin_reading()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.end_reading()


class _Alone(AbstractContextManager[None]):
    __slots__ = ("_gate",)

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.begin_changing()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.end_changing()
