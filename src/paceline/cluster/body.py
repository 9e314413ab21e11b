"""The cluster body: the coordinator's side of a day whose workers are in other processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from paceline.batch import Batch
from paceline.cluster.office import Office
from paceline.cluster.traffic import Traffic
from paceline.errors import ClusterLost
from paceline.exchange.far import FarShards
from paceline.runtimes.ahead import ReadAhead
from paceline.runtimes.body import nothing_told
from paceline.runtimes.coordinator import Coordinator
from paceline.runtimes.statistics import Statistics

_AHEAD = 8  # batches
PATIENCE = 60.0  # seconds for workers to come


class ClusterBody:
    """Runs a day's batches through whichever workers are at the office. workers: how many are expected; on_start:
    called when the first of them may begin, gives what the metrics say of recoveries."""

    virtual = False
    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        office: Office,
        store: FarShards,
        statistics: Statistics,
        traffic: Traffic,
        workers: int,
        on_start: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._office, self._store, self._statistics = office, store, statistics
        self._traffic, self._workers, self._on_start = traffic, workers, on_start
        self._coordinator: Coordinator | None = None
        self._updates = 0  # when it began
        self._recovered: dict[str, Any] = {}
        office.traffic = traffic

    def staff(self, workers: int) -> None:
        """There are so many workers from now on."""
        self._workers = workers
        self._traffic.staff(workers, self._generation_updates)

    @property
    def samples_read(self) -> int | None:
        """By the run; None until its workers may begin."""
        return None if self._coordinator is None else self._coordinator.machine.account.read

    @property
    def _generation_updates(self) -> int:
        return 0 if self._coordinator is None else self._coordinator.machine.account.updates - self._updates

    def state(self) -> dict[str, Any]:
        """Nothing that a checkpoint would keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def told(self) -> dict[str, Any]:
        """See `paceline.runtimes.body.Body`."""
        traffic = self._traffic.per_update(self._generation_updates)
        return {**nothing_told(self._workers), **traffic, **self._recovered}

    def run_day(
        self, coordinator: Coordinator, source: Iterator[Batch], watch: Callable[[], None] = lambda: None
    ) -> None:
        """Train on every batch of `source`; returns when all of it is settled. `watch` is called ten times a second.
        The first error is raised here."""
        if self._store.failure is not None:
            raise self._store.failure
        self._store.on_failure = coordinator.fail
        expected = self._workers if self._coordinator is None else 1
        if not self._office.wait_for_workers(expected, PATIENCE) and not self._office.workers():
            raise self._office.stuck(at_once=True) or ClusterLost(f"no worker came within {PATIENCE:g} seconds")
        if self._coordinator is None:
            self._coordinator, self._updates = coordinator, coordinator.machine.account.updates
            self._recovered = self._on_start()
        self._statistics.keep(self._office.workers())
        self._office.held.keep(self._office.workers())
        ahead = ReadAhead(source, _AHEAD, self._office.poke)
        coordinator.open(ahead)
        self._office.open_day(coordinator, self._statistics)
        try:
            while not coordinator.finished(0.1):
                self._office.tend()
                stuck = self._office.stuck()
                if stuck is not None:
                    raise stuck
                watch()
        except BaseException as error:
            coordinator.fail(error)
            raise
        finally:
            ahead.close()
        if coordinator.failure is not None:
            raise coordinator.failure
        self._office.close_day()
        self._store.settle()
