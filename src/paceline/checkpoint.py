"""Checkpoints: one consistent version of everything, in standard formats, never half written.

    checkpoints/000123/                named by the number of updates
        rows.arrow                     Arrow IPC: id, weights, slots, last_update, count
        dense.safetensors              the model's parameters
        dense_optimizer.safetensors    tensors of the dense optimizer ...
        statistics.safetensors         running statistics of batch normalisation: pooled, and each worker's own
        state.json                     ... its other values, pace machine, cursor, spans to read again, totals
        manifest.json                  sizes and SHA-256 of the others; written last

A checkpoint is written under another name, flushed to disk and renamed, and only then are older ones removed. So
whenever the process is killed, the last good one is whole. Loading checks every sum and falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.torch

from paceline.errors import LossError, RunDirError, StorageError
from paceline.params.dense import DenseBlock
from paceline.params.shard import Shard
from paceline.params.table import RowBlock, Table
from paceline.rundir import storing
from paceline.runtimes.statistics import Statistics

FORMAT = 3
MANIFEST = "manifest.json"
STATISTICS = "statistics.safetensors"
REPLACED = "replaced"
_RATES = ": a learning rate is too high (optimizer.sparse.lr, optimizer.dense.lr)"


@dataclass(frozen=True, slots=True)
class Loaded:
    """Where a checkpoint came from and what its state.json says."""

    path: Path
    state: dict[str, Any]


def save(
    folder: Path, shard: Shard, state: dict[str, Any], keep: int, sound: int = -1, statistics: Statistics | None = None
) -> Path:
    """Write checkpoints/<updates> under `folder` and remove all but the newest `keep`, and the newest up to version
    `sound`. statistics: of batch normalisation. Returns its path.

    Raises StorageError, or LossError if a parameter is not finite; what was stored before is untouched then.
    """
    final = folder / f"{shard.version:09d}"
    temporary = folder / f".writing-{os.getpid()}-{shard.version}"
    try:
        with storing(final):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            tensors, rest = shard.dense.slots()
            if not all(bool(tensor.isfinite().all()) for tensor in shard.dense.weights().values()):
                raise LossError(f"a dense parameter of version {shard.version} is not finite{_RATES}")
            _write_rows(temporary / "rows.arrow", shard.table)
            safetensors.torch.save_file(shard.dense.weights(), temporary / "dense.safetensors")
            safetensors.torch.save_file(tensors, temporary / "dense_optimizer.safetensors")
            if statistics is not None:
                tensors_by_name = {"pooled": statistics.current(), **statistics.workers}
                apart = {name: tensor.clone() for name, tensor in tensors_by_name.items()}  # safetensors wants no views
                safetensors.torch.save_file(apart, temporary / STATISTICS)
            told = {"format": FORMAT, "version": shard.version, "dense_optimizer": rest, **state}
            (temporary / "state.json").write_text(json.dumps(told))
            sums = {path.name: _sum(path) for path in sorted(temporary.iterdir())}
            (temporary / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": sums}, indent=1))
            _flush(temporary)
            # The same version again (no update since): the new one has the newer cursor. Until it has its name, the old
            # one is kept under a name that `clean` knows.
            replaced = _aside(final, REPLACED) if final.exists() else None
            temporary.rename(final)
            _flush(folder)
            if replaced is not None:
                shutil.rmtree(replaced)
    except safetensors.SafetensorError as error:
        raise StorageError(f"{final}: cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    safe = next((path for path in _all(folder) if int(path.name) <= sound), None)
    for old in _all(folder)[keep:]:
        if old != safe:
            shutil.rmtree(_aside(old), ignore_errors=True)
    return final


def set_aside(folder: Path, sound: int) -> Path | None:
    """Remove checkpoints newer than version `sound`: what was trained since may have exploded already. The last one
    that is left is never removed. Returns the newest that is left."""
    found = _all(folder)
    while len(found) > 1 and int(found[0].name) > sound:
        shutil.rmtree(_aside(found.pop(0)), ignore_errors=True)
    return found[0] if found else None


def load(
    folder: Path, shard: Shard, dense_optimizer: bool = True, statistics: Statistics | None = None
) -> Loaded | None:
    """Put the newest whole checkpoint into `shard` (fresh, with the same parts). None if there is none.

    A damaged one is passed over for the one before; StorageError if there are only damaged ones.
    """
    found = newest(folder)
    if found is None:
        return None
    path, state = found.path, found.state
    rows = 0
    for block in _read_rows(path / "rows.arrow", shard.table):
        shard.table.load(block)
        rows += block.ids.shape[0]
    if rows != len(shard.table):
        raise StorageError(f"{path}: {rows:,} rows for {len(shard.table):,} ids; ids are repeated, the file is damaged")
    weights = safetensors.torch.load_file(path / "dense.safetensors")
    _check_dense(path, shard.dense, weights)
    if dense_optimizer:
        tensors = safetensors.torch.load_file(path / "dense_optimizer.safetensors")
        shard.dense.load(weights, tensors, state["dense_optimizer"])
    else:
        shard.dense.load(weights, {}, shard.dense.slots()[1])
    shard.version = state["version"]
    if statistics is not None:
        stored = safetensors.torch.load_file(path / STATISTICS)
        statistics.pooled = stored.pop("pooled")
        statistics.workers = stored
    return found


def newest(folder: Path) -> Loaded | None:
    """The newest checkpoint whose sums are right."""
    damaged: list[str] = []
    for path in _all(folder):
        problem = _problem(path)
        if problem is None:
            state = json.loads((path / "state.json").read_text())
            if state["format"] != FORMAT:
                raise RunDirError(f"{path}: written in format {state['format']}, this version reads {FORMAT}")
            return Loaded(path, state)
        damaged.append(f"{path}: {problem}")
    if damaged:
        raise StorageError("no checkpoint is whole:\n" + "\n".join(damaged))
    return None


def clean(folder: Path) -> None:
    """Remove what a killed process left behind, after putting back a checkpoint that was about to be replaced."""
    for path in folder.glob(f".{REPLACED}-*"):
        final = folder / path.name.split("-")[1]
        if not final.exists():
            path.rename(final)
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    """Newest first."""
    found = [p for p in folder.glob("[0-9]*") if p.name.isdigit() and (p / MANIFEST).exists()]
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def _aside(path: Path, why: str = "old") -> Path:
    """Give a checkpoint that is to be removed another name at once, so that none is ever half there."""
    moved = path.with_name(f".{why}-{path.name}-{os.getpid()}")
    path.rename(moved)
    return moved


def _sum(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _problem(path: Path) -> str | None:
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        for name, expected in manifest["files"].items():
            if _sum(path / name) != expected:
                return f"{name} is not what was written (size or SHA-256 differ)"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable: {error}"
    return None


def _flush(folder: Path) -> None:
    for path in (*folder.iterdir(), folder):
        if path.is_dir() and path != folder:
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _schema(table: Table) -> Any:
    return pa.schema(
        [
            ("id", pa.int64()),
            ("weights", pa.list_(pa.float32(), table.weights)),
            ("slots", pa.list_(pa.float32(), table.slots)),
            ("last_update", pa.int64()),
            ("count", pa.int64()),
        ]
    )


def _write_rows(path: Path, table: Table) -> None:
    schema = _schema(table)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for block in table.blocks():
            if not np.isfinite(block.weights).all():
                raise LossError(f"the row of an id is not finite{_RATES}")
            columns = [
                pa.array(block.ids),
                _lists(block.weights, table.weights),
                _lists(block.slots, table.slots),
                pa.array(np.ascontiguousarray(block.clocks[:, 0])),
                pa.array(np.ascontiguousarray(block.clocks[:, 1])),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _lists(values: Any, width: int) -> Any:
    if width == 0:
        return pa.array([[]] * values.shape[0], pa.list_(pa.float32(), 0))
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width)


def _read_rows(path: Path, table: Table) -> Any:
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        if reader.schema != _schema(table):
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


def _check_dense(path: Path, dense: DenseBlock, weights: dict[str, Any]) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in dense.named}
    stored = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if wanted != stored:
        name = next(iter(sorted(set(wanted.items()) ^ set(stored.items()))))[0]
        raise RunDirError(
            f"{path}: parameter {name!r} is {stored.get(name, 'absent')} in the checkpoint and"
            f" {wanted.get(name, 'absent')} in the model; use the configuration that the run was started with"
        )
