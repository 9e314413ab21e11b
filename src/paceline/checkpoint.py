"""Checkpoints: one consistent version of everything, in standard formats, incremental, never half written.

    checkpoints/
        000000123/                               a snapshot, named by the number of updates
            state.json                           pace machine, cursor, spans to read again, totals, optimizer's values
            statistics.safetensors               of batch normalisation: pooled, and each worker's own
            manifest.json                        every file that it consists of, with size and SHA-256
        pieces/                                  what shards wrote; snapshots share files of rows
            000000100-0-of-2-base-9c1e04b7.arrow         Arrow IPC: id, weights, slots, last_update, count
            000000123-0-of-2-delta-51d30f6a.arrow        rows that changed since: later files win
            000000123-0-of-2-dense-51d30f6a.safetensors  parameters that the shard holds
            000000123-0-of-2-slots-51d30f6a.safetensors  their optimizer's tensors, 'parameter/key'

A snapshot is made in phases, each of which may be in another process: `take` copies what changed of each shard while
nothing changes, `write` stores the copy, `commit` makes the pieces of all shards one snapshot by giving its folder its
name, and only then removes what is no longer needed. So whenever a process is killed, the last good snapshot is whole.
Loading checks every sum and falls back to the snapshot before; any number of shards may read what another number wrote.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from paceline.errors import RunDirError, StorageError, TrainingError
from paceline.exchange.placement import owner_of
from paceline.params.shard import Shard
from paceline.params.table import RowBlock
from paceline.rundir import storing
from paceline.runtimes.statistics import Statistics
from paceline.snapshot import PIECES, Copy, Piece, Stored, flush, read_rows, remove, sum_of, take, write

FORMAT = 4
MANIFEST = "manifest.json"
STATE = "state.json"
STATISTICS = "statistics.safetensors"
REPLACED = "replaced"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A snapshot: its folder, what its state.json says, and its shards' pieces in their order."""

    path: Path
    state: dict[str, Any]
    pieces: tuple[Piece, ...]

    @property
    def version(self) -> int:
        """The number of updates that its parameters have had."""
        return self.pieces[0].version

    @property
    def ids(self) -> int:
        """Rows of all shards."""
        return sum(piece.ids for piece in self.pieces)

    def piece_of(self, index: int, shards: int) -> Piece | None:
        """What shard `index` of `shards` goes on from with `take`; None if the snapshot is of another partition."""
        return self.pieces[index] if len(self.pieces) == shards else None


# --- writing ----------------------------------------------------------------------------------------------------------


def commit(
    folder: Path,
    version: int,
    pieces: Sequence[Piece],
    state: dict[str, Any],
    keep: int,
    sound: int = -1,
    statistics: dict[str, Tensor] | None = None,
) -> Path:
    """Make the pieces of all shards the snapshot checkpoints/<version> and remove all but the newest `keep` and the
    newest up to version `sound`; one of the same version is replaced. One process, one call at a time.

    folder: the run's checkpoints; state: JSON values; statistics: of batch normalisation, `Statistics.tensors()`.
    Snapshots newer than `version` are removed too: they are of a future that was given up. Returns its path.
    Raises TrainingError if the pieces are not of one version and partition, StorageError if something cannot be
    written or is missing (a piece that goes on from a snapshot that is gone: take that shard whole); what was stored
    before is untouched then, and the pieces may be discarded. Once it returns, shards may go on from their pieces.
    """
    pieces = sorted(pieces, key=lambda piece: piece.shard)
    found = [(piece.version, piece.shard, piece.shards) for piece in pieces]
    if not pieces or found != [(version, shard, len(pieces)) for shard in range(len(pieces))]:
        told = ", ".join(f"version {v} of shard {i} of {n}" for v, i, n in found) or "nothing"
        raise TrainingError(f"{folder}: a snapshot of version {version} cannot be made of {told}: nothing was stored")
    final = folder / f"{version:09d}"
    temporary = folder / f".writing-{os.getpid()}-{version}"
    try:
        with storing(final):
            for file in (file for piece in pieces for file in piece.files):
                if (folder / PIECES / file.name).stat().st_size != file.bytes:
                    raise StorageError(f"{folder / PIECES / file.name}: not what was written (its size differs)")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            if statistics is not None:
                safetensors.torch.save_file(statistics, temporary / STATISTICS)
            whole = {"format": FORMAT, "version": version, "dense_optimizer": _optimizer(pieces), **state}
            (temporary / STATE).write_text(json.dumps(whole))
            sums = {path.name: sum_of(path) for path in sorted(temporary.iterdir())}
            manifest = {"format": FORMAT, "files": sums, "pieces": [piece.to_json() for piece in pieces]}
            (temporary / MANIFEST).write_text(json.dumps({**manifest, "sha256": _own_sum(manifest)}, indent=1))
            for path in (*temporary.iterdir(), temporary):
                flush(path)
            # The same version again (no update since): the new one has the newer cursor. Until it has its name, the old
            # one is kept under a name that `clean` knows.
            replaced = _aside(final, REPLACED) if final.exists() else None
            temporary.rename(final)
            flush(folder)
            if replaced is not None:
                shutil.rmtree(replaced, ignore_errors=True)
    except safetensors.SafetensorError as error:
        raise StorageError(f"{final}: cannot be written ({error}); is the disk full?") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    # From here on it is stored; what cannot be removed now is removed by `clean`.
    older = [path for path in committed(folder) if int(path.name) <= version]
    safe = next((path for path in older if int(path.name) <= sound), None)
    for path in committed(folder):
        if path not in older[:keep] and path != safe:
            shutil.rmtree(_aside(path), ignore_errors=True)
    _collect(folder, version)
    return final


def discard(folder: Path, pieces: Iterable[Piece]) -> None:
    """Remove what was written for a snapshot that will not be committed; what a snapshot names stays. Never fails."""
    named = _named(folder)
    if named is not None:
        remove(folder / PIECES, {name for piece in pieces for name in piece.written} - named)


def set_aside(folder: Path, sound: int) -> Path | None:
    """Remove snapshots newer than version `sound`: what was trained since may have exploded already. The last one that
    is left is never removed. Returns the newest that is left. Nobody may be writing."""
    found = committed(folder)
    while len(found) > 1 and int(found[0].name) > sound:
        shutil.rmtree(_aside(found.pop(0)), ignore_errors=True)
    _collect(folder)
    return found[0] if found else None


def clean(folder: Path) -> None:
    """Remove what a killed process left behind, after putting back a snapshot that was about to be replaced. What is
    left in the folder of pieces is what the snapshots name. Nobody may be writing."""
    for path in folder.glob(f".{REPLACED}-*"):
        final = folder / path.name.split("-")[1]
        if not final.exists():
            path.rename(final)
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    _collect(folder)


# --- reading ----------------------------------------------------------------------------------------------------------


def load(
    folder: Path,
    shard: Shard,
    index: int = 0,
    shards: int = 1,
    dense_optimizer: bool = True,
    statistics: Statistics | None = None,
) -> Loaded | None:
    """Put the newest whole snapshot under `folder` into `shard`: `newest`, then `restore`. None if there is none.

    Where shards are loaded by several processes, one should find `newest` and all `restore` that.
    """
    found = newest(folder)
    if found is not None:
        restore(found, shard, index, shards, dense_optimizer, statistics)
    return found


def restore(
    found: Loaded,
    shard: Shard,
    index: int = 0,
    shards: int = 1,
    dense_optimizer: bool = True,
    statistics: Statistics | None = None,
) -> None:
    """Put a snapshot into `shard` (fresh, with the same parts), number `index` of `shards`: the rows whose ids it owns
    and the dense parameters that it has, whichever shard wrote them. Sums are not checked (`newest` did).

    dense_optimizer: whether its state is wanted; statistics: where those of batch normalisation go. `take` may go on
    from `found.piece_of(index, shards)`. Raises RunDirError if model or optimizer are others than the snapshot's.
    """
    same = found.piece_of(index, shards)
    for piece in found.pieces if same is None else (same,):
        before = len(shard.table)
        for file in piece.rows:
            for block in read_rows(found.path.parent, file, shard.table):
                shard.table.load(block if same is not None or shards == 1 else _owned(block, index, shards))
        rows = len(shard.table) - before
        if (same is not None or shards == 1) and rows != piece.ids:
            raise StorageError(
                f"{found.path}: {rows:,} rows of shard {piece.shard} instead of {piece.ids:,}; an id is repeated or"
                " missing, the files are damaged"
            )
    _restore_dense(found, shard, shards, dense_optimizer)
    shard.version = found.version
    if statistics is not None:
        statistics.load(safetensors.torch.load_file(found.path / STATISTICS))


def newest(folder: Path) -> Loaded | None:
    """The newest snapshot whose sums are right; None if there is none at all.

    A damaged one is passed over for the one before. Raises StorageError if there are only damaged ones, RunDirError if
    one was written in another format.
    """
    damaged: list[str] = []
    for path in committed(folder):
        try:
            problem = _problem(path)
            if problem is None:
                return read(path)
        except _DAMAGE as error:
            problem = f"unreadable: {error}"
        damaged.append(f"{path}: {problem}")
    if damaged:
        raise StorageError("no checkpoint is whole:\n" + "\n".join(damaged))
    return None


def read(path: Path) -> Loaded:
    """The snapshot in the folder `path`, without a look at its sums: for a shard that is told which one to restore."""
    manifest, state = _manifest(path), json.loads((path / STATE).read_text())
    return Loaded(path, state, tuple(Piece.from_json(piece) for piece in manifest["pieces"]))


def _owned(block: RowBlock, index: int, shards: int) -> RowBlock:
    mine = owner_of(block.ids, shards) == index
    return RowBlock(block.ids[mine], block.weights[mine], block.slots[mine], block.clocks[mine])


def _restore_dense(found: Loaded, shard: Shard, shards: int, optimizer: bool) -> None:
    wanted = {name: list(parameter.shape) for name, parameter in shard.dense.named}
    stored = {name: shape for piece in found.pieces for name, shape in piece.names.items()}
    differ = {name for name in wanted if wanted[name] != stored.get(name)}
    if shards == 1:  # else the others are other shards'
        differ |= stored.keys() - wanted.keys()
    if differ:
        name = min(differ)
        raise RunDirError(
            f"{found.path}: parameter {name!r} is {_shape(stored, name)} in the checkpoint and"
            f" {_shape(wanted, name)} in the model; use the configuration that the run was started with"
        )
    weights: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for piece in found.pieces:
        if piece.names.keys() & wanted.keys():
            place = found.path.parent / PIECES
            weights |= _tensors(place / piece.dense.name, wanted)
            if optimizer:
                tensors |= _tensors(place / piece.slots.name, wanted)
    shard.dense.load(weights, tensors, found.state["dense_optimizer"] if optimizer else None)


def _tensors(path: Path, wanted: dict[str, list[int]]) -> dict[str, Tensor]:
    """Of these parameters, copies that need the file no longer."""
    with safetensors.safe_open(path, "pt") as file:
        names = [key for key in file.keys() if key in wanted or key.rpartition("/")[0] in wanted]  # noqa: SIM118
        return {name: file.get_tensor(name).clone() for name in names}


def _shape(named: dict[str, list[int]], name: str) -> str:
    return str(tuple(named[name])) if name in named else "absent"


# --- what is there ----------------------------------------------------------------------------------------------------


def committed(folder: Path) -> list[Path]:
    """The snapshots under `folder`, newest first."""
    found = [p for p in folder.glob("[0-9]*") if p.name.isdigit() and (p / MANIFEST).exists()]
    return sorted(found, key=lambda p: int(p.name), reverse=True)


def is_whole(path: Path) -> bool:
    """Whether there is such a snapshot still."""
    return (path / MANIFEST).exists()


def _manifest(path: Path) -> dict[str, Any]:
    """Raises RunDirError for another format, and something of _DAMAGE where it is damaged."""
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise RunDirError(f"{path}: written in format {manifest['format']}, this version reads {FORMAT}")
    if manifest.pop("sha256") != _own_sum(manifest):
        raise ValueError(f"{MANIFEST} is not what was written (its SHA-256 differs)")
    return manifest


def _own_sum(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _problem(path: Path) -> str | None:
    manifest = _manifest(path)
    files = {path / name: told for name, told in manifest["files"].items()}
    for piece in manifest["pieces"]:
        for file in Piece.from_json(piece).files:
            files[path.parent / PIECES / file.name] = {"bytes": file.bytes, "sha256": file.sha256}
    for file_path, told in files.items():
        if sum_of(file_path) != told:
            return f"{file_path.relative_to(path.parent)} is not what was written (size or SHA-256 differ)"
    return None


def _named(folder: Path) -> set[str] | None:
    """Names of the pieces' files that snapshots need; None if that cannot be known: a manifest cannot be read just now,
    or is of another format."""
    named: set[str] = set()
    for path in committed(folder):
        try:
            for piece in _manifest(path)["pieces"]:
                named.update(file.name for file in Piece.from_json(piece).files)
        except (OSError, RunDirError):
            return None
        except _DAMAGE:
            continue  # it can never be loaded again, whatever it named
    return named


def _collect(folder: Path, version: int | None = None) -> None:
    """Remove the pieces that no snapshot needs (those up to `version`: later ones may be under way)."""
    named = _named(folder)
    if named is not None:
        names = {file.name for file in (folder / PIECES).glob("*-of-*")}
        old = {name for name in names if version is None or int(name.split("-")[0]) <= version}
        remove(folder / PIECES, old - named)


def _aside(path: Path, why: str = "old") -> Path:
    """Give a snapshot that is to be removed another name at once, so that none is ever half there."""
    moved = path.with_name(f".{why}-{path.name}-{os.getpid()}")
    path.rename(moved)
    return moved


def _optimizer(pieces: Sequence[Piece]) -> dict[str, Any]:
    """What of the dense optimizer's state is no tensor, all shards together."""
    holder = next((piece for piece in pieces if piece.names), pieces[0])
    values = {name: told for piece in pieces for name, told in piece.optimizer["state"].items()}
    return {"param_groups": holder.optimizer["param_groups"], "state": values}


__all__ = [
    "FORMAT",
    "Copy",
    "Loaded",
    "Piece",
    "Stored",
    "clean",
    "commit",
    "discard",
    "load",
    "newest",
    "read",
    "restore",
    "set_aside",
    "take",
    "write",
]
