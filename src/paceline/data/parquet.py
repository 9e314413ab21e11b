"""Parquet files as chunks, through pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from paceline.data.chunks import MISSING, NOT_A_NUMBER, Chunk, Lists, Spans
from paceline.data.files import open_raw
from paceline.errors import DataError, suggest

ROWS = 1 << 15


@dataclass(slots=True)
class ParquetChunk(Chunk):
    """Rows of a record batch. An id is the hash of the value's text, so 42 in Parquet and '42' in CSV are one id."""

    columns: dict[str, Any] = field(default_factory=dict)

    def line(self, row: int) -> int:
        return self.first + row + 1

    def texts(self, column: str) -> Spans:
        return _spans(self.columns[column], self.path, column)

    def integers(self, column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]] | None:
        array = self.columns[column]
        if not pa.types.is_integer(array.type) or array.type == pa.uint64():
            return None
        missing = np.asarray(array.is_null().to_numpy(zero_copy_only=False))
        values = array.fill_null(0) if array.null_count else array
        return values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False), missing

    def numbers(self, column: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
        array = self.columns[column]
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
            from paceline.kernels import text as kernels

            spans = _spans(array, self.path, column)
            values, state = np.empty(self.rows, np.float64), np.empty(self.rows, np.uint8)
            kernels.parse_numbers(spans.buffer, spans.starts, spans.ends, values, state)
            return values, state
        try:
            casted = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
            casted = casted.cast(pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"{self.path}: column {column!r} of type {array.type} holds no numbers") from error
        state = np.asarray(casted.is_null().to_numpy(zero_copy_only=False)).astype(np.uint8) * MISSING
        values = casted.fill_null(0.0).to_numpy(zero_copy_only=False).astype(np.float64)
        state[~np.isfinite(values)] = NOT_A_NUMBER
        return np.where(np.isfinite(values), values, 0.0), state

    def lists(self, column: str, separator: str) -> Lists:
        array = self.columns[column]
        if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
            offsets = np.zeros(self.rows + 1, np.int64)
            np.cumsum(lengths, out=offsets[1:])
            return Lists(_spans(array.flatten(), self.path, column), offsets)
        from paceline.data.chunks import TextChunk

        spans = _spans(array, self.path, column)
        starts, ends = spans.starts.astype(np.int32)[:, None], spans.ends.astype(np.int32)[:, None]
        text = TextChunk(self.path, self.file, self.first, self.rows, {}, {column: 0}, spans.buffer, starts, ends)
        return text.lists(column, separator)


def _spans(array: Any, path: str, column: str) -> Spans:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        texts = array.cast(pa.large_string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{path}: column {column!r} of type {array.type} cannot be made into ids") from error
    if texts.null_count:
        texts = texts.fill_null("")
    _, offsets_buffer, data = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    buffer = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)
    return Spans(buffer, offsets[:-1], offsets[1:])


def open_parquet(raw: IO[bytes], path: str) -> Any:
    """The Parquet file in an open binary file. Raises DataError if it is not whole or has no rows."""
    try:
        # Without these two a whole row group is read before its first row comes.
        source = pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); is data.format right?") from error
    if source.metadata.num_rows == 0:
        raise DataError(f"{path}: the file has no rows; take it out of data.days")
    return source


def read_parquet(
    path: str, file: int, needed: tuple[str, ...], start: int = 0, optional: str = ""
) -> Iterator[ParquetChunk]:
    """The chunks of a Parquet file from the row group that holds row `start` on; column `optional` may be absent.

    Raises DataError for a file that is none, or that lacks a needed column.
    """
    with open_raw(path) as raw:
        source = open_parquet(raw, path)
        names = source.schema_arrow.names
        needed = tuple(c for c in needed if c != optional or c in names)
        for column in needed:
            if column not in names:
                raise DataError(
                    f"{path}: there is no column {column!r}{suggest(column, names)} (columns: {', '.join(names)})"
                )
        first, groups = 0, list(range(source.num_row_groups))
        while len(groups) > 1 and first + source.metadata.row_group(groups[0]).num_rows <= start:
            first += source.metadata.row_group(groups.pop(0)).num_rows
        try:
            for record in source.iter_batches(ROWS, row_groups=groups, columns=list(needed)):
                columns = {name: record.column(at) for at, name in enumerate(record.schema.names)}
                yield ParquetChunk(path, file, first, record.num_rows, {}, columns)
                first += record.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{path}: damaged after row {first:,} ({error}); fetch the file again") from error
