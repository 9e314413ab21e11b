"""Stretches of rows as the formats give them: columns of spans, of numbers, of lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.kernels import text as kernels

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int32] | npt.NDArray[np.int64]

MISSING, NOT_A_NUMBER = 1, 2


@dataclass(frozen=True, slots=True)
class Spans:
    """Texts as stretches of a buffer: text r is buffer[starts[r]:ends[r]]; an empty one is a missing value."""

    buffer: Bytes
    starts: Places
    ends: Places

    def text(self, row: int) -> str:
        """For messages only."""
        return bytes(self.buffer[self.starts[row] : self.ends[row]]).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Lists:
    """Bags: row r has the cells offsets[r]:offsets[r + 1]; weights float32 or None (all 1)."""

    cells: Spans
    offsets: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32] | None = None


@dataclass(slots=True)
class Chunk(ABC):
    """Rows that follow each other in one file.

    path: the file; file: its number in the day; first: rows of the file before this chunk, bad ones counted;
    bad: rows that are broken as a whole (row in the chunk -> reason).
    """

    path: str
    file: int
    first: int
    rows: int
    bad: dict[int, str] = field(default_factory=dict)

    @abstractmethod
    def line(self, row: int) -> int:
        """What a message calls the place of `row`: the line in a text file, the row (from 1) in Parquet."""

    @abstractmethod
    def texts(self, column: str) -> Spans:
        """The column as spans [rows]."""

    def integers(self, column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        """(values [rows], whether missing [rows]) of a column that is stored as whole numbers, whose texts are their
        decimals; None: it is not."""
        return None

    @abstractmethod
    def numbers(self, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        """(values [rows], state [rows]: 0 fine, MISSING or NOT_A_NUMBER)."""

    @abstractmethod
    def lists(self, column: str, separator: str) -> Lists:
        """The column as bags."""


@dataclass(slots=True)
class TextChunk(Chunk):
    """Rows of a delimited text file: spans for every cell."""

    names: dict[str, int] = field(default_factory=dict)
    buffer: Bytes = field(default_factory=lambda: np.zeros(1, np.uint8))
    starts: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    ends: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 0), np.int32))
    lines: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def line(self, row: int) -> int:
        return int(self.lines[row])

    def texts(self, column: str) -> Spans:
        at = self.names[column]
        return Spans(self.buffer, self.starts[:, at], self.ends[:, at])

    def numbers(self, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        spans = self.texts(column)
        values, state = np.empty(self.rows, np.float64), np.empty(self.rows, np.uint8)
        kernels.parse_numbers(spans.buffer, spans.starts, spans.ends, values, state)
        return values, state

    def lists(self, column: str, separator: str) -> Lists:
        spans = self.texts(column)
        offsets = np.empty(self.rows + 1, np.int64)
        none = np.empty(0, np.int32)
        cut = ord(separator)
        count = kernels.split_cells(spans.buffer, spans.starts, spans.ends, cut, offsets, none, none)
        starts, ends = np.empty(count, np.int32), np.empty(count, np.int32)
        if count:
            kernels.split_cells(spans.buffer, spans.starts, spans.ends, cut, offsets, starts, ends)
        return Lists(Spans(spans.buffer, starts, ends), offsets)


@dataclass(slots=True)
class LibsvmChunk(Chunk):
    """Rows of a libsvm file: labels (-1 is read as 0) and one bag with weights."""

    labels: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    bag: Lists | None = None
    lines: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def line(self, row: int) -> int:
        return int(self.lines[row])

    def texts(self, column: str) -> Spans:
        raise KeyError(column)

    def numbers(self, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        if column != "label":
            raise KeyError(column)
        return np.where(self.labels == -1, 0.0, self.labels), np.zeros(self.rows, np.uint8)

    def lists(self, column: str, separator: str) -> Lists:
        assert self.bag is not None
        return self.bag
