"""What runs a day: threads, a virtual cluster, or processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from paceline.batch import Batch
from paceline.runtimes.coordinator import Coordinator


class Body(Protocol):
    """Where workers run. clock: its seconds; virtual: they are not real ones; state: what a checkpoint keeps of it."""

    @property
    def virtual(self) -> bool: ...

    def clock(self) -> float: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def run_day(self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None]) -> None: ...
