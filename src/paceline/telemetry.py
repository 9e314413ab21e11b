"""What is counted while workers run: staleness, gradient norms, idle time. Everything adds up and survives a resume."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PER_DECADE = 20
_FIRST, _DECADES = -10, 20  # norms from 1e-10 to 1e10; beyond them the outermost bin


@dataclass(slots=True)
class Norms:
    """A histogram of norms over the decimal logarithm, `PER_DECADE` bins for each factor of ten."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(PER_DECADE * _DECADES, np.int64))
    zeros: int = 0

    def add(self, norm: float) -> None:
        if norm > 0.0:
            place = math.floor((math.log10(min(norm, 1e99)) - _FIRST) * PER_DECADE)
            self.counts[min(max(place, 0), len(self.counts) - 1)] += 1
        else:
            self.zeros += 1

    def to_json(self) -> dict[str, Any]:
        """first: decimal logarithm of the lower edge of counts[0]; per_decade: bins in a factor of ten."""
        places = np.flatnonzero(self.counts)
        low, high = (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)
        return {
            "first": _FIRST + low / PER_DECADE,
            "per_decade": PER_DECADE,
            "counts": self.counts[low:high].tolist(),
            "zeros": self.zeros,
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Norms:
        norms = Norms(zeros=value["zeros"])
        low = round((value["first"] - _FIRST) * PER_DECADE)
        norms.counts[low : low + len(value["counts"])] = value["counts"]
        return norms


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Kolmogorov-Smirnov distance of two `Norms.to_json`, 0 (the same) to 1 (apart); nan if one is empty."""
    counts = [Norms.from_json(x).counts for x in (a, b)]
    if not all(c.sum() for c in counts):
        return float("nan")
    one, other = (np.cumsum(c) / c.sum() for c in counts)
    return float(np.abs(one - other).max())


@dataclass(slots=True)
class Telemetry:
    """Counted since the last `Telemetry()`; `totals` of two of them is the sum.

    staleness: gradients by the number of binary digits of their staleness (0, 1, 2-3, 4-7, ...), negative ones at 0;
    rows: the same for the rows of every gradient that was not dropped as it arrived; gradients, updates: norms of what
    workers push and of what is applied; idle, present: seconds for each worker (idle: asked for work and had to wait).
    """

    staleness: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))
    staleness_sum: float = 0.0
    staleness_max: int = 0
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(64, np.int64))
    gradients: Norms = field(default_factory=Norms)
    updates: Norms = field(default_factory=Norms)
    idle: dict[str, float] = field(default_factory=dict)
    present: dict[str, float] = field(default_factory=dict)

    def settled(self, staleness: int) -> None:
        """A gradient was applied, cut or dropped, `staleness` updates old."""
        self.staleness[max(staleness, 0).bit_length()] += 1
        self.staleness_sum += staleness
        self.staleness_max = max(self.staleness_max, staleness)

    @property
    def staleness_mean(self) -> float | None:
        """Signed: under data-order tokens a gradient may be early."""
        count = int(self.staleness.sum())
        return self.staleness_sum / count if count else None

    @property
    def idle_share(self) -> float | None:
        """Share of all workers' time that was spent waiting for work."""
        present = sum(self.present.values())
        return sum(self.idle.values()) / present if present > 0 else None

    def summary(self, dropped: int, read: int) -> dict[str, Any]:
        """What a metrics line says of staleness, waiting and loss of samples."""
        mean, idle = self.staleness_mean, self.idle_share
        return {
            "staleness_mean": None if mean is None else round(mean, 3),
            "staleness_max": self.staleness_max,
            "idle_share": None if idle is None else round(idle, 5),
            "dropped_share": round(dropped / read, 6) if read else 0.0,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `histograms.jsonl` and a checkpoint hold them."""
        return {
            "staleness": _trim(self.staleness),
            "staleness_sum": self.staleness_sum,
            "staleness_max": self.staleness_max,
            "row_staleness": _trim(self.rows),
            "gradient_norm": self.gradients.to_json(),
            "update_norm": self.updates.to_json(),
            "idle_s": {name: round(value, 6) for name, value in self.idle.items()},
            "present_s": {name: round(value, 6) for name, value in self.present.items()},
        }

    def bins(self) -> list[tuple[str, list[float], list[int]]]:
        """(name, upper edges, counts) of every histogram."""
        found: list[tuple[str, list[float], list[int]]] = []
        for name, ages in (("staleness", self.staleness), ("row_staleness", self.rows)):
            counts = _trim(ages)
            found.append((name, [float(2**digits) for digits in range(len(counts))], counts))
        for name, norms in (("gradient_norm", self.gradients), ("update_norm", self.updates)):
            told = norms.to_json()
            edges = [10 ** (told["first"] + (i + 1) / PER_DECADE) for i in range(len(told["counts"]))]
            found.append((name, edges, told["counts"]))
        return found

    @staticmethod
    def from_json(value: dict[str, Any]) -> Telemetry:
        made = Telemetry(staleness_sum=value["staleness_sum"], staleness_max=value["staleness_max"])
        made.staleness[: len(value["staleness"])] = value["staleness"]
        made.rows[: len(value["row_staleness"])] = value["row_staleness"]
        made.gradients, made.updates = Norms.from_json(value["gradient_norm"]), Norms.from_json(value["update_norm"])
        made.idle, made.present = dict(value["idle_s"]), dict(value["present_s"])
        return made

    def merge(self, other: Telemetry) -> None:
        """Add what another one counted."""
        self.staleness += other.staleness
        self.staleness_sum += other.staleness_sum
        self.staleness_max = max(self.staleness_max, other.staleness_max)
        self.rows += other.rows
        for mine, its in ((self.gradients, other.gradients), (self.updates, other.updates)):
            mine.counts += its.counts
            mine.zeros += its.zeros
        for times, more in ((self.idle, other.idle), (self.present, other.present)):
            for name, seconds in more.items():
                times[name] = times.get(name, 0.0) + seconds


def _trim(counts: npt.NDArray[np.int64]) -> list[int]:
    places = np.flatnonzero(counts)
    return [int(c) for c in counts[: places[-1] + 1]] if len(places) else []
