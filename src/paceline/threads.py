"""Threads whose end can be waited for, whatever strikes in the waiting."""

from __future__ import annotations

import threading


class SureThread(threading.Thread):
    """A thread that `join` and `is_alive` tell the truth about after an interrupt.

    Before Python 3.13, an exception of a signal's handler (Ctrl-C) that strikes in `Thread.join` leaves the thread
    marked as ended while it runs on (CPython, after bpo-45274): the next `join` returns at once, and a file is written
    by two, or a generator closed while it is in use.
    """

    _over: threading.Event

    def start(self) -> None:
        """Start it."""
        self._over = threading.Event()
        super().start()

    def run(self) -> None:
        """The target, and then the note that it is over."""
        try:
            super().run()
        finally:
            self._over.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is over, or so many seconds."""
        if self.ident is None:
            super().join(timeout)  # raises: it was never started
        self._over.wait(timeout)

    def is_alive(self) -> bool:
        """Whether it was started and is not over."""
        return self.ident is not None and not self._over.is_set()
