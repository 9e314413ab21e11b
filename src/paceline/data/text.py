"""Delimited text (Criteo, CSV, TSV) and libsvm, as chunks.

The splitter is ours because three things have to happen in one pass over the bytes: every row keeps its line number
for messages, a bad row is set apart instead of ending the file, and ids are hashed from the bytes without a string ever
being made. (polars and pyarrow each do one or two of these; `benchmarks/` compares the speed.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from paceline.data.chunks import LibsvmChunk, Lists, Spans, TextChunk
from paceline.data.files import blocks
from paceline.errors import DataError, suggest
from paceline.kernels import text as kernels

LONGEST_ROW = 64 << 20


@dataclass(frozen=True, slots=True)
class Dialect:
    """How rows are cut. names: the columns, or None if the first line of each file names them."""

    delimiter: str = "\t"
    quote: str | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of one buffer, cut into cells (see `kernels.text.split_rows`)."""

    buffer: np.ndarray[tuple[int], np.dtype[np.uint8]]
    starts: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    ends: np.ndarray[tuple[int, int], np.dtype[np.int32]]
    found: np.ndarray[tuple[int], np.dtype[np.int32]]
    lines: np.ndarray[tuple[int], np.dtype[np.int64]]  # line numbers from 1


def split_file(path: str, delimiter: bytes, quote: int, columns: int) -> Iterator[Split]:
    """The rows of a file, a few MB at a time. Raises DataError for binary files and endless rows."""
    cut = np.frombuffer(delimiter, np.uint8)
    rest = b""
    lines_before = 0
    stream = blocks(path)
    block = next(stream, b"")
    while block or rest:
        following = next(stream, b"")
        data = bytearray(rest + block)
        buffer = np.frombuffer(data, np.uint8)
        most = data.count(b"\n") + 1
        starts, ends = np.empty((most, columns), np.int32), np.empty((most, columns), np.int32)
        found, lines = np.empty(most, np.int32), np.empty(most, np.int64)
        rows, used, newlines, nul = kernels.split_rows(
            buffer, len(data), not following, cut, quote, starts, ends, found, lines
        )
        if nul >= 0:
            raise DataError(
                f"{path}, line {lines_before + newlines + 1}: a NUL byte; this is a binary file, not text"
                " (is data.format right?)"
            )
        if rows:
            yield Split(buffer, starts[:rows], ends[:rows], found[:rows], lines[:rows] + lines_before + 1)
        rest = bytes(data[used:])
        lines_before += newlines
        if following and len(rest) > LONGEST_ROW:
            raise DataError(
                f"{path}, line {lines_before + 1}: no end of the row within {LONGEST_ROW >> 20} MB;"
                " this is no text file, or a quote was never closed"
            )
        block = following
        if not following:
            return


def read_delimited(path: str, file: int, dialect: Dialect, needed: tuple[str, ...]) -> Iterator[TextChunk]:
    """The chunks of a delimited file. Raises DataError if the header lacks a needed column."""
    delimiter = dialect.delimiter.encode()
    quote = ord(dialect.quote) if dialect.quote else -1
    names = dialect.names or _header(path, delimiter, quote)
    missing = [c for c in needed if c not in names]
    if missing:
        raise DataError(
            f"{path}: there is no column {missing[0]!r}{suggest(missing[0], list(names))}"
            f" (the file's columns: {', '.join(names)})"
        )
    index = {name: at for at, name in enumerate(names)}
    first = 0
    skip = 1 if dialect.names is None else 0
    for split in split_file(path, delimiter, quote, len(names)):
        starts, ends, found, lines = split.starts[skip:], split.ends[skip:], split.found[skip:], split.lines[skip:]
        skip = 0
        rows = found.shape[0]
        bad = {}
        for row in np.flatnonzero(found != len(names)):
            bad[int(row)] = f"{found[row]} columns where {len(names)} are expected"
            starts[row], ends[row] = 0, 0
        yield TextChunk(path, file, first, rows, bad, index, split.buffer, starts, ends, lines)
        first += rows


def without_absent_label(path: str, dialect: Dialect, label: str) -> Dialect:
    """The dialect for rows to be scored: where columns are named by position and the file has one column less than
    names, it is the label that is absent."""
    if dialect.names is None:
        return dialect
    quote = ord(dialect.quote) if dialect.quote else -1
    for split in split_file(path, dialect.delimiter.encode(), quote, len(dialect.names)):
        if int(split.found[0]) == len(dialect.names) - 1:
            return replace(dialect, names=tuple(n for n in dialect.names if n != label))
        break
    return dialect


def _header(path: str, delimiter: bytes, quote: int) -> tuple[str, ...]:
    for split in split_file(path, delimiter, quote, 4096):
        spans = Spans(split.buffer, split.starts[0], split.ends[0])
        return tuple(spans.text(c).strip().removeprefix("\ufeff") for c in range(min(int(split.found[0]), 4096)))
    raise DataError(f"{path}: the file has no header line")


_LIBSVM_REASONS = {
    1: "the row does not begin with a label",
    2: "a feature that is not index:value",
    3: "a feature value that is no finite number",
    4: "an index that is no whole number below 2^63",
    5: "no features after the label",
}


def read_libsvm(path: str, file: int) -> Iterator[LibsvmChunk]:
    """The chunks of a libsvm file."""
    first = 0
    for split in split_file(path, b"\n", -1, 1):
        starts, ends = split.starts[:, 0], split.ends[:, 0]
        rows = starts.shape[0]
        pairs = int(np.count_nonzero(split.buffer == kernels.COLON)) + 1
        offsets = np.empty(rows + 1, np.int64)
        id_starts, id_ends = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
        weights, labels = np.empty(pairs, np.float32), np.zeros(rows, np.float64)
        state = np.empty(rows, np.uint8)
        count = kernels.split_libsvm(split.buffer, starts, ends, offsets, id_starts, id_ends, weights, labels, state)
        bag = Lists(Spans(split.buffer, id_starts[:count], id_ends[:count]), offsets, weights[:count])
        bad = {int(row): _LIBSVM_REASONS[int(state[row])] for row in np.flatnonzero(state)}
        yield LibsvmChunk(path, file, first, rows, bad, labels, bag, split.lines)
        first += rows
