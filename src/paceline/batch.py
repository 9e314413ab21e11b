"""A batch of training samples, and where in the log it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """A place in a day: file (index among the day's files) and row (rows of that file before it, bad ones counted)."""

    file: int = 0
    row: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The rows [start, stop) of day `day`, and the running moments that its numbers are standardised with.

    moments: float64 [3, dense features] (count, mean, sum of squared differences) before the span.
    """

    day: int
    start: Cursor
    stop: Cursor
    moments: npt.NDArray[np.float64]

    def to_json(self) -> dict[str, Any]:
        ends = [self.start.file, self.start.row, self.stop.file, self.stop.row]
        return {"day": self.day, "rows": ends, "moments": self.moments.tolist()}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Span:
        a, b, c, d = value["rows"]
        moments = np.array(value["moments"], np.float64).reshape(3, -1)
        return Span(value["day"], Cursor(a, b), Cursor(c, d), moments)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that was left out, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Bag:
    """Several ids per row: row r has ids[offsets[r]:offsets[r + 1]].

    ids int64 [n]; offsets int64 [rows + 1]; weights float32 [n] (1 / length for mean pooling, 1 for sums).
    """

    ids: Ints
    offsets: Ints
    weights: Floats


@dataclass(frozen=True, slots=True)
class Batch:
    """labels float32 [B]; ids int64 [B, single fields]; bags: one per multi field; dense float32 [B, dense width];
    groups int64 [B] or None; span: where it came from; following: the empty span right behind it; skipped: rows left
    out since the batch before; places: int64 [B, 2] (file, row from 0), only where scores are to be told apart; soft:
    float32 [B], what other models predict, to learn from besides."""

    labels: Floats
    ids: Ints
    bags: tuple[Bag, ...]
    dense: Floats
    groups: Ints | None
    span: Span
    following: Span
    skipped: tuple[BadRow, ...] = ()
    places: Ints | None = None
    soft: Floats | None = None

    @property
    def samples(self) -> int:
        return int(self.labels.shape[0])

    def flat_ids(self) -> Ints:
        """Every id of the batch, singles row by row and then the bags, int64 [positions]."""
        if not self.bags:
            return self.ids.reshape(-1)
        return np.concatenate([self.ids.reshape(-1), *(bag.ids for bag in self.bags)])
