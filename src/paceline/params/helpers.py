"""Threads that take their share of one large piece of work on rows."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

_WORTH = 1 << 12  # rows of a share: fewer are done before a thread has begun


class Helpers:
    """The calling thread and `threads` - 1 more, which end with this object.

    settle: what each of them calls first, so that its arithmetic is that of the callers (denormal numbers).
    """

    def __init__(self, threads: int, settle: Callable[[], None]) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "rows", settle) if threads > 1 else None

    def each(self, work: Callable[[int, int], T], rows: int) -> list[T]:
        """What `work(start, stop)` returns for consecutive stretches that make up `rows`, in their order. They are
        worked on at the same time, so none may touch what is another's."""
        shares = max(min(self._threads, rows // _WORTH), 1)
        bounds = [rows * i // shares for i in range(shares + 1)]
        if self._pool is None or shares == 1:
            return [work(0, rows)]
        others: list[Future[T]] = []
        try:
            others += (self._pool.submit(work, bounds[i], bounds[i + 1]) for i in range(1, shares))
            first = work(bounds[0], bounds[1])
        finally:
            wait(others)  # whatever happened: the caller takes it that nobody touches its rows any more
        return [first, *(other.result() for other in others)]


def no_helpers() -> Helpers:
    """The calling thread does all of it."""
    return Helpers(1, lambda: None)
