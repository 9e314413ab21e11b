"""What is known before a plan is made: of the data and the model, of this machine, and what could be run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from paceline.config import PaceConfig


def along(points: Sequence[tuple[float, float]], x: float) -> float:
    """y at x by straight lines through `points` (in order of x, all above 0) in logarithms: exact where y is a power of
    x, which distinct ids nearly are; beyond the ends the nearest slope goes on."""
    if len(points) == 1:
        return points[0][1]
    at = next((i for i, point in enumerate(points[1:-1], 1) if x <= point[0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return y0 * math.exp(slope * math.log(x / x0))


@dataclass(frozen=True, slots=True)
class BatchFact:
    """Means of batches of `samples`. positions: ids, repeats counted; distinct: U, distinct ids; row_bytes: what a pull
    of their rows carries (ids and numbers)."""

    samples: int
    positions: float
    distinct: float
    row_bytes: float


@dataclass(frozen=True, slots=True)
class DataFacts:
    """Of a job's data and model. batches: at several sizes, in their order; dense: how many dense parameters; skew: by
    number of shards, the largest one's distinct ids over the mean; activations: bytes that a gradient keeps a sample.
    """

    batches: tuple[BatchFact, ...]
    dense: int
    skew: dict[int, float]
    activations: float

    def distinct(self, samples: int) -> float:
        """U(X): distinct ids in a batch of `samples`."""
        return along([(b.samples, b.distinct) for b in self.batches], samples)

    def row_bytes(self, samples: int) -> float:
        """Bytes of a pull of a batch's rows; a push has as many."""
        return along([(b.samples, b.row_bytes) for b in self.batches], samples)

    def bytes(self, samples: int, collective: bool) -> float:
        """S_p: what a worker moves one way for a gradient; under collectives the dense gradient goes by the ring."""
        return self.row_bytes(samples) + (0 if collective else 4 * self.dense)


@dataclass(frozen=True, slots=True)
class Timing:
    """Medians of one worker with one thread at a local batch of `samples`, seconds on a core. compute: of the gradient
    alone; step: lease, pull, compute, push, apply; apply: of that the update, which nothing else runs beside."""

    samples: int
    compute: float
    step: float
    apply: float


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """Of this machine. timings: at three local batches, in their order; apply_more: seconds of an update of `parts`
    gradients of the middle one; crowding: what a step takes on all cores at once over what it takes alone, >= 1;
    read_cpu: seconds of a core for reading a sample; read_rate: samples per second that the reader could give."""

    cores: int
    timings: tuple[Timing, ...]
    parts: int
    apply_more: float
    crowding: float
    read_cpu: float
    read_rate: float

    def compute(self, samples: int) -> float:
        """T_C(b), seconds."""
        return along([(t.samples, t.compute) for t in self.timings], samples)

    def busy(self, samples: int) -> float:
        """Seconds of a step without its update: what workers do beside one another."""
        return along([(t.samples, max(t.step - t.apply, t.compute)) for t in self.timings], samples)

    def apply(self, samples: int, gradients: int) -> float:
        """Seconds of an update of `gradients` gradients: a part for each of them and one that is always there."""
        middle = self.timings[len(self.timings) // 2]
        each = max(self.apply_more - middle.apply, 0.0) / (self.parts - 1)
        once = max(middle.apply - each, 0.0)
        alone = along([(t.samples, t.apply) for t in self.timings], samples)
        return once + max(alone - once, 0.0) * gradients

    def line(self) -> tuple[float, float, float]:
        """(fixed seconds, seconds a sample, largest relative error at a measured size) of T_C(b) as a straight line by
        least squares, neither part below 0."""
        x, y = [float(t.samples) for t in self.timings], [t.compute for t in self.timings]
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        spread = sum((a - mean_x) ** 2 for a in x)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
        slope = min(max(slope, 0.0), mean_y / mean_x)
        fixed = mean_y - slope * mean_x
        return fixed, slope, max(abs(fixed + slope * a - b) / b for a, b in zip(x, y, strict=True))


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to run the job. servers: None under collectives, where every worker holds a part of the rows."""

    workers: int
    local: int
    global_: int
    pace: PaceConfig
    servers: int | None

    @property
    def gradients(self) -> int:
        """M: local batches in an update."""
        return self.global_ // self.local

    @property
    def collective(self) -> bool:
        return self.pace.build(self.gradients).collective

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "workers": self.workers,
            "local_batch": self.local,
            "global_batch": self.global_,
            "pace": self.pace.name,
            "servers": self.servers,
            "exchange": "collectives" if self.collective else "push_pull",
        }


def plain(facts: DataFacts | MachineFacts) -> dict[str, Any]:
    """Plain values for a file."""
    return asdict(facts)
