"""Who is told how a run goes."""

from __future__ import annotations

from typing import Any, Protocol


class Watcher(Protocol):
    """Who is told how the run goes (a terminal, a notebook, nobody)."""

    def day(self, day: int, days: int) -> None: ...

    def tick(self, status: dict[str, Any]) -> None: ...

    def line(self, line: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Tells nobody."""

    def day(self, day: int, days: int) -> None: ...

    def tick(self, status: dict[str, Any]) -> None: ...

    def line(self, line: dict[str, Any]) -> None: ...

    def note(self, text: str) -> None: ...
