"""What runs a day: threads, a virtual cluster, or processes; and what holds the parameters meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor

from paceline.batch import Batch, Ints
from paceline.exchange.direct import Pulled
from paceline.pace import Apply
from paceline.runtimes.coordinator import Coordinator


class Store(Protocol):
    """The parameters, wherever they are: one shard in this process, or several in others."""

    @property
    def version(self) -> int: ...

    @property
    def ids(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def apply(self, command: Apply) -> float | None:
        """Carry out an update, or order it. Returns the norm of its gradient if it is known at once."""

    def drop(self, number: int) -> None: ...

    def read(self, ids: Ints) -> Pulled: ...

    def read_dense(self, into: Tensor) -> None: ...

    def settle(self) -> None:
        """Return when everything that was ordered is done."""

    def take_counted(self) -> tuple[Ints, list[float]]: ...


def nothing_told(workers: int) -> dict[str, Any]:
    """workers: how many there are; bytes_predicted, bytes_measured: of a worker and update, by kind; busy_share: of the
    workers' time that they compute (push and pull only); recoveries and the seconds they took."""
    nothing = {"bytes_predicted": None, "bytes_measured": None, "busy_share": None, "recoveries": 0, "recovery_s": 0.0}
    return {"workers": workers, **nothing}


class Body(Protocol):
    """Where workers run. clock: its seconds; virtual: they are not real ones; state: what a checkpoint keeps of it."""

    @property
    def virtual(self) -> bool: ...

    def clock(self) -> float: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...

    def told(self) -> dict[str, Any]:
        """What its metrics lines say of processes and traffic (see `nothing_told`)."""

    def run_day(self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None]) -> None: ...
