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
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MOST_COLUMNS = 65536


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
    block = next(stream, b"").removeprefix(BYTE_ORDER_MARK)
    while block or rest:
        following = next(stream, b"")
        original = rest + block
        data = bytearray(original)  # quotes are folded in place, so what is left is taken from the original
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
        rest = original[used:]
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
    if len(first_row(path, dialect.delimiter.encode(), quote)) == len(dialect.names) - 1:
        return replace(dialect, names=tuple(n for n in dialect.names if n != label))
    return dialect


def first_row(path: str, delimiter: bytes, quote: int) -> list[str]:
    """The cells of the first row. Raises DataError if the file has none."""
    cut = np.frombuffer(delimiter, np.uint8)
    starts, ends = np.empty((1, MOST_COLUMNS), np.int32), np.empty((1, MOST_COLUMNS), np.int32)
    found, lines = np.empty(1, np.int32), np.empty(1, np.int64)
    data = b""
    for block in blocks(path, 1 << 16):
        data = data.removeprefix(BYTE_ORDER_MARK) + block if data else block.removeprefix(BYTE_ORDER_MARK)
        buffer = np.frombuffer(bytearray(data + b"\n" if len(block) < 1 << 16 else data), np.uint8)
        rows, _, _, nul = kernels.split_rows(buffer, len(buffer), False, cut, quote, starts, ends, found, lines)
        if nul >= 0:
            raise DataError(f"{path}, line 1: a NUL byte; this is a binary file, not text (is data.format right?)")
        if rows:
            spans = Spans(buffer, starts[0], ends[0])
            return [spans.text(cell) for cell in range(min(int(found[0]), MOST_COLUMNS))]
        if len(data) > LONGEST_ROW:
            break
    raise DataError(f"{path}: no first row within its first {LONGEST_ROW >> 20} MB; is it text?")


def _header(path: str, delimiter: bytes, quote: int) -> tuple[str, ...]:
    names = tuple(cell.strip() for cell in first_row(path, delimiter, quote))
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}, line 1: the column {twice[0]!r} is named twice; give each a name of its own")
    return names


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
