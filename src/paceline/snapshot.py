"""A shard's piece of a snapshot: copied while nothing changes, written by any thread of the shard's process.

What was written becomes part of a checkpoint when `paceline.checkpoint.commit` names it; until then it is garbage that
does no harm, because every file has a name of its own and none is ever written over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch
from torch import Tensor

from paceline.errors import LossError, RunDirError, StorageError
from paceline.params.shard import Shard
from paceline.params.table import BLOCK_ROWS, RowBlock, Table
from paceline.rundir import storing

PIECES = "pieces"
_LONGEST = 64  # files that a shard's rows are read from, at most
_RATES = ": a learning rate is too high (optimizer.sparse.lr, optimizer.dense.lr)"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file in the folder of pieces: its size, its SHA-256 and, of a file of rows, how many it holds."""

    name: str
    bytes: int
    sha256: str
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one shard wrote of a snapshot. Plain values: it travels between processes as `to_json`.

    version: of the state; shard, of `shards`; ids: rows of its table; rows: files that hold them, a row's later values
    in a later file (the first is a base, the others deltas); dense, slots: its dense parameters and their optimizer's
    tensors; names: of the parameters, with their shapes; optimizer: what of its state is no tensor; written: names of
    the files that are new.
    """

    version: int
    shard: int
    shards: int
    ids: int
    rows: tuple[Stored, ...]
    dense: Stored
    slots: Stored
    names: dict[str, list[int]]
    optimizer: dict[str, Any]
    written: tuple[str, ...]

    @property
    def files(self) -> tuple[Stored, ...]:
        """All files that it needs, those of earlier snapshots included."""
        return (*self.rows, self.dense, self.slots)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Piece:
        """Raises KeyError or TypeError for anything else than `to_json` gave."""
        one = {name: Stored(**values[name]) for name in ("dense", "slots")}
        rows = tuple(Stored(**file) for file in values["rows"])
        return cls(**{**values, **one, "rows": rows, "written": tuple(values["written"])})


@dataclass(frozen=True, slots=True)
class Copy:
    """A shard's state as it was at `version`, or what had changed since; nothing in it is shared with the shard.

    before: files that hold the other rows (none: `rows` are all of them); the rest as in `Piece`.
    """

    version: int
    shard: int
    shards: int
    ids: int
    before: tuple[Stored, ...]
    rows: RowBlock
    dense: dict[str, Tensor]
    slots: dict[str, Tensor]
    optimizer: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Memory that it takes, in bytes, until it is written."""
        tensors = sum(t.numel() * t.element_size() for t in (*self.dense.values(), *self.slots.values()))
        rows = self.rows
        return tensors + rows.ids.nbytes + rows.weights.nbytes + rows.slots.nbytes + rows.clocks.nbytes


def take(shard: Shard, index: int = 0, shards: int = 1, since: Piece | None = None) -> Copy:
    """Copy what has to be written of `shard`, number `index` of `shards`. Nobody may change it meanwhile (its route's
    `whole()`); about 1 ns for each row of the table and 60 to 300 ns for each row that is copied (34 numbers).

    since: this shard's piece of the last *committed* snapshot, which this one goes on from. All rows are copied if it
    is None or of another partition, and when the deltas would hold more rows than half the base.
    """
    table, before = shard.table, () if since is None else since.rows
    if since is None or (since.shard, since.shards) != (index, shards) or not before:
        numbers, before = table.changed(-1, 0), ()
    else:
        numbers = table.changed(since.version, since.ids)
        later = numbers.shape[0] + sum(file.rows for file in before[1:])
        if later > before[0].rows // 2 or len(before) >= _LONGEST:
            numbers, before = table.changed(-1, 0), ()
    slots, optimizer = shard.dense.slots()
    dense = shard.dense.weights()
    return Copy(shard.version, index, shards, len(table), before, table.copy(numbers), dense, slots, optimizer)


def write(folder: Path, copy: Copy) -> Piece:
    """Write a copy's files under `folder` (the run's checkpoints) and flush them to disk. Any thread, any time.

    Raises StorageError, or LossError if a parameter is not finite; then nothing of it is left.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in copy.dense.values()):
        raise LossError(f"a dense parameter of version {copy.version} is not finite{_RATES}")
    if not np.isfinite(copy.rows.weights).all():
        raise LossError(f"the row of an id is not finite at version {copy.version}{_RATES}")
    place = folder / PIECES
    name = f"{copy.version:09d}-{copy.shard}-of-{copy.shards}-{{}}-{secrets.token_hex(4)}.{{}}"
    rows, count, written = copy.before, copy.rows.ids.shape[0], []
    row_file = place / name.format("delta" if copy.before else "base", "arrow")
    dense, slots = (place / name.format(what, "safetensors") for what in ("dense", "slots"))
    try:
        with storing(place):
            place.mkdir(parents=True, exist_ok=True)
            if count or not copy.before:
                written.append(row_file.name)
                _write_rows(row_file, copy.rows)
                rows = (*rows, _stored(row_file, count))
            written += [dense.name, slots.name]
            safetensors.torch.save_file(copy.dense, dense)
            safetensors.torch.save_file(copy.slots, slots)
            told = _stored(dense), _stored(slots)
            flush(place)
    except BaseException as error:
        remove(place, written)
        if isinstance(error, safetensors.SafetensorError):
            raise StorageError(f"{place}: cannot be written ({error}); is the disk full?") from error
        raise
    shapes = {key: list(tensor.shape) for key, tensor in copy.dense.items()}
    return Piece(copy.version, copy.shard, copy.shards, copy.ids, rows, *told, shapes, copy.optimizer, tuple(written))


def read_rows(folder: Path, file: Stored, table: Table) -> Iterator[RowBlock]:
    """The rows of a file, block by block. Raises RunDirError if they are of another shape than the table's."""
    path = folder / PIECES / file.name
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        if reader.schema != _schema(table.weights, table.slots):
            raise RunDirError(
                f"{path}: rows of another shape ({reader.schema.field('weights').type}, slots"
                f" {reader.schema.field('slots').type}) than model and optimizer.sparse ask for ({table.weights}"
                f" weights, {table.slots} slots); use the configuration that the run was started with"
            )
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            n = batch.num_rows
            clocks = np.stack([batch.column("last_update").to_numpy(), batch.column("count").to_numpy()], axis=1)
            weights = batch.column("weights").flatten().to_numpy().reshape(n, table.weights)
            slots = (
                batch.column("slots").flatten().to_numpy().reshape(n, table.slots)
                if table.slots
                else np.empty((n, 0), np.float32)
            )
            yield RowBlock(batch.column("id").to_numpy().astype(np.int64), weights, slots, np.ascontiguousarray(clocks))


def remove(place: Path, names: Iterable[str]) -> None:
    """Remove files of a folder, as far as that is possible now."""
    for name in names:
        with contextlib.suppress(OSError):
            (place / name).unlink()


def sum_of(path: Path) -> dict[str, Any]:
    """The file's size in bytes and its SHA-256."""
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def flush(path: Path) -> None:
    """See to it that a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _stored(path: Path, rows: int = 0) -> Stored:
    flush(path)
    return Stored(path.name, **sum_of(path), rows=rows)


def _schema(weights: int, slots: int) -> Any:
    return pa.schema(
        [
            ("id", pa.int64()),
            ("weights", pa.list_(pa.float32(), weights)),
            ("slots", pa.list_(pa.float32(), slots)),
            ("last_update", pa.int64()),
            ("count", pa.int64()),
        ]
    )


def _write_rows(path: Path, rows: RowBlock) -> None:
    weights, slots = rows.weights.shape[1], rows.slots.shape[1]
    schema = _schema(weights, slots)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, rows.ids.shape[0], BLOCK_ROWS):
            some = slice(start, start + BLOCK_ROWS)
            columns = [
                pa.array(rows.ids[some]),
                _lists(rows.weights[some], weights),
                _lists(rows.slots[some], slots),
                pa.array(np.ascontiguousarray(rows.clocks[some, 0])),
                pa.array(np.ascontiguousarray(rows.clocks[some, 1])),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _lists(values: Any, width: int) -> Any:
    if width == 0:
        return pa.array([[]] * values.shape[0], pa.list_(pa.float32(), 0))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)
