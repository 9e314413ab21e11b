"""What a run says of its days: telemetry, waiting and time, day by day and in all; it goes on after a resume."""

from __future__ import annotations

from typing import Any

from paceline.pace import Account
from paceline.runtimes.body import Body, Store
from paceline.runtimes.coordinator import Coordinator
from paceline.telemetry import Telemetry


class Tally:
    """Counts a run's days. last_day: what the metrics say of the last one."""

    def __init__(self, body: Body) -> None:
        self.last_day: dict[str, Any] = {}
        self._body = body
        self._totals = Telemetry()  # of the days before this one
        self._began: list[float] | None = None  # samples read and dropped, and the clock, when this day began
        self._virtual: dict[str, Any] = {}  # of a virtual body: its state, and the samples of its days

    def to_json(self, counted: Telemetry) -> dict[str, Any]:
        """What a checkpoint keeps, with what was counted since the last trained day."""
        virtual = self._virtual
        if self._body.virtual:
            virtual = {"samples": 0, **virtual, "body": self._body.state()}
        return {
            "totals": self._totals.to_json(),
            "counted": counted.to_json(),
            "last_day": self.last_day,
            "virtual": virtual,
            "began": self._began,
        }

    def restore(self, state: dict[str, Any]) -> Telemetry:
        """Go on from `to_json`; the body goes on from its clock. Returns what was counted of the day."""
        self._totals, self.last_day = Telemetry.from_json(state["totals"]), state["last_day"]
        self._virtual, self._began = state["virtual"], state["began"]
        if self._virtual and self._body.virtual:
            self._body.restore(self._virtual["body"])
        return Telemetry.from_json(state["counted"])

    def begin_day(self, account: Account) -> None:
        """A day begins, or goes on after a resume."""
        self._began = self._began or [account.read, account.dropped, self._body.clock()]

    def end_day(self, account: Account, counted: Telemetry) -> None:
        """A day has ended."""
        read, dropped, clock = self._began or [account.read, account.dropped, self._body.clock()]
        samples = int(account.read - read)
        self.last_day = {
            **counted.summary(int(account.dropped - dropped), samples),
            "samples_per_virtual_s": self._rate(samples, self._body.clock() - clock),
        }
        if self._body.virtual:
            self._virtual = {"samples": self._virtual.get("samples", 0) + samples}
        self._totals.merge(counted)
        self._began = None

    def end(self, account: Account) -> None:
        """The run has ended: from now on `last_day` is of all of it."""
        self.last_day = {
            **self._totals.summary(account.dropped, account.read),
            "samples_per_virtual_s": self._rate(self._virtual.get("samples", 0), self._body.clock()),
        }

    def live(self, account: Account) -> dict[str, Any]:
        """Of the day so far."""
        read, _, clock = self._began or [account.read, 0, self._body.clock()]
        return {"samples_per_virtual_s": self._rate(int(account.read - read), self._body.clock() - clock)}

    def _rate(self, samples: int, seconds: float) -> float | None:
        return round(samples / seconds, 1) if self._body.virtual and seconds > 0 else None


def count(coordinator: Coordinator, store: Store) -> Telemetry:
    """What was counted since the last trained day, up to now."""
    coordinator.count_time()
    counted = coordinator.telemetry
    rows, norms = store.take_counted()
    counted.rows += rows
    for norm in norms:
        counted.updates.add(norm)
    return counted
