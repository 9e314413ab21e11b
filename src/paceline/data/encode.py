"""Chunks to blocks: labels, 64-bit ids, bags and numbers of the good rows; the bad ones with their reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.batch import BadRow, Bag, Floats, Ints
from paceline.data.chunks import MISSING, NOT_A_NUMBER, Chunk, Lists, Spans
from paceline.kernels import hashing
from paceline.kernels import text as kernels
from paceline.schema import Multi, Schema


@dataclass(frozen=True, slots=True)
class Block:
    """Good rows of one chunk, in order.

    rows int64 [n]: their place in the file; labels float32 [n]; ids int64 [n, single fields]; bags; numbers float64
    [n, dense features], NaN where missing; groups int64 [n] or None; bad: (place in the file, row) of the others;
    stop: the place behind the chunk's last row.
    """

    file: int
    rows: Ints
    labels: Floats
    ids: Ints
    bags: tuple[Bag, ...]
    numbers: npt.NDArray[np.float64]
    groups: Ints | None
    bad: tuple[tuple[int, BadRow], ...]
    stop: int

    def __len__(self) -> int:
        return int(self.labels.shape[0])


def encode(chunk: Chunk, schema: Schema, labelled: bool = True) -> Block:
    """The block of a chunk. Bad rows never raise here: whoever cuts batches decides what they mean.

    Unless `labelled`, the label may be absent or empty and is NaN then.
    """
    n = chunk.rows
    reasons = dict(chunk.bad)
    labels = _labels(chunk, schema, reasons) if labelled else _labels_if_any(chunk, schema)
    ids = np.empty((n, len(schema.single_fields)), np.int64)
    numbers = np.empty((n, len(schema.dense)), np.float64)
    at, dense_at = 0, 0
    for numeric in schema.numeric:
        values, state = chunk.numbers(numeric.column)
        if numeric.transform != "log_bucket":  # these numbers reach the model, as float32
            state[np.abs(values) > kernels.FLOAT32_MAX] = NOT_A_NUMBER
        _note(reasons, chunk, schema, numeric.column, state)
        if numeric.transform == "log_bucket":
            hashing.hash_buckets(values, state != 0, hashing.field_seed(numeric.column), ids[:, at])
            at += 1
        else:
            numbers[:, dense_at] = np.where(state != 0, np.nan, values)
            dense_at += 1
    for column in schema.categorical:
        hash_column(chunk, column, ids[:, at])
        at += 1
    bags = tuple(_bag(chunk.lists(multi.column, multi.separator), multi) for multi in schema.multi)
    groups: Ints | None = None
    if schema.group is not None:
        groups = np.empty(n, np.int64)
        hash_column(chunk, schema.group, groups)
    rows = np.arange(chunk.first, chunk.first + n, dtype=np.int64)
    bad = tuple((chunk.first + r, BadRow(chunk.path, chunk.line(r), reasons[r])) for r in sorted(reasons))
    if bad:
        good = np.ones(n, bool)
        good[list(reasons)] = False
        rows, labels, ids, numbers = rows[good], labels[good], ids[good], numbers[good]
        bags = tuple(choose(bag, good) for bag in bags)
        groups = groups[good] if groups is not None else None
    return Block(chunk.file, rows, labels, ids, bags, numbers, groups, bad, chunk.first + n)


def hash_column(chunk: Chunk, column: str, out: Ints) -> None:
    """Ids of a column's values, into out int64 [rows]."""
    integers = chunk.integers(column)
    if integers is None:
        _hash(chunk.texts(column), column, out)
    else:
        hashing.hash_integers(*integers, hashing.field_seed(column), out)


def _hash(spans: Spans, column: str, out: Ints) -> None:
    hashing.hash_spans(spans.buffer, spans.starts, spans.ends, hashing.field_seed(column), out)


def _labels(chunk: Chunk, schema: Schema, reasons: dict[int, str]) -> Floats:
    column = schema.label.column
    values, state = chunk.numbers(column)
    for r in np.flatnonzero(state):
        if int(r) not in reasons:
            told = _told(chunk, column, int(r))
            reasons[int(r)] = f"the label {column!r} is {told}" + (
                "" if state[r] == MISSING else ", which is no finite number"
            )
    labels = schema.label.apply(values)
    if schema.label.positive is None:
        way_out = " (for other labels write a rule: features.label.positive, such as '>= 4')" if schema.free else ""
        for r in np.flatnonzero((values != 0.0) & (values != 1.0)):
            if int(r) not in reasons:
                reasons[int(r)] = f"the label {column!r} is {values[r]:g}, not 0 or 1{way_out}"
    return labels


def _labels_if_any(chunk: Chunk, schema: Schema) -> Floats:
    try:
        values, state = chunk.numbers(schema.label.column)
    except KeyError:
        return np.full(chunk.rows, np.nan, np.float32)
    return np.where(state == 0, schema.label.apply(values), np.float32(np.nan)).astype(np.float32)


def _note(reasons: dict[int, str], chunk: Chunk, schema: Schema, column: str, state: npt.NDArray[np.uint8]) -> None:
    way_out = "; for text use features.categorical" if schema.free else ""
    for r in np.flatnonzero(state == NOT_A_NUMBER):
        if int(r) not in reasons:
            reasons[int(r)] = (
                f"column {column!r} is {_told(chunk, column, int(r))}, which is no finite number"
                f" (leave missing values empty{way_out})"
            )


def _told(chunk: Chunk, column: str, row: int) -> str:
    try:
        return repr(chunk.texts(column).text(row)[:60]) if chunk.texts(column).text(row) else "empty"
    except KeyError:
        return "not given"


def _bag(lists: Lists, multi: Multi) -> Bag:
    cells, offsets = lists.cells, lists.offsets
    ids = np.empty(cells.starts.shape[0], np.int64)
    _hash(cells, multi.column, ids)
    lengths = np.diff(offsets)
    if multi.pool == "mean":
        weights = np.repeat(1.0 / np.maximum(lengths, 1), lengths).astype(np.float32)
    elif lists.weights is not None:
        weights = lists.weights
    else:
        weights = np.ones(ids.shape[0], np.float32)
    empty = np.flatnonzero(lengths == 0)
    if empty.size:  # a bag without cells is a missing value, which has an id of its own
        ids = np.insert(ids, offsets[empty], hashing.missing_id(multi.column))
        weights = np.insert(weights, offsets[empty], np.float32(1.0))
        offsets = offsets + np.concatenate([[0], np.cumsum(lengths == 0)])
    return Bag(ids, offsets, weights)


def choose(bag: Bag, rows: npt.NDArray[np.bool_]) -> Bag:
    """The bags of the rows that are True."""
    lengths = np.diff(bag.offsets)
    cells = np.repeat(rows, lengths)
    offsets = np.zeros(int(rows.sum()) + 1, np.int64)
    np.cumsum(lengths[rows], out=offsets[1:])
    return Bag(bag.ids[cells], offsets, bag.weights[cells])


def piece(block: Block, start: int, stop: int) -> Block:
    """Rows [start, stop) of a block (views), without its bad rows."""
    bags = tuple(
        Bag(
            bag.ids[bag.offsets[start] : bag.offsets[stop]],
            bag.offsets[start : stop + 1] - bag.offsets[start],
            bag.weights[bag.offsets[start] : bag.offsets[stop]],
        )
        for bag in block.bags
    )
    return Block(
        block.file,
        block.rows[start:stop],
        block.labels[start:stop],
        block.ids[start:stop],
        bags,
        block.numbers[start:stop],
        block.groups[start:stop] if block.groups is not None else None,
        (),
        block.stop,
    )


def join_bags(bags: list[Bag]) -> Bag:
    """Bags of rows that follow each other."""
    if len(bags) == 1:
        return bags[0]
    lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
    offsets = np.zeros(lengths.shape[0] + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return Bag(np.concatenate([b.ids for b in bags]), offsets, np.concatenate([b.weights for b in bags]))
