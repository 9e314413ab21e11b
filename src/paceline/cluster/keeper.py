"""The keeper of a cluster's run: each shard copies and writes its own piece, the coordinator makes them a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import safetensors.torch

from paceline import checkpoint
from paceline.exchange.far import FarShards
from paceline.keeper import Keeper
from paceline.runtimes.statistics import Statistics


class ClusterKeeper(Keeper):
    """The order to copy goes to every shard behind the updates that were ordered before and ahead of those after, so
    all copies are of one version while gradients keep arriving. ready: called when the shards have their state."""

    def __init__(self, folder: Path, keep: int, store: FarShards, ready: Callable[[], None]) -> None:
        super().__init__(folder, keep, None)
        self._store, self._ready = store, ready

    def _restore(self, found: checkpoint.Loaded | None, statistics: Statistics) -> None:
        self._store.connect(None if found is None else str(found.path.absolute()))
        if found is not None:
            self.since = list(found.pieces) if len(found.pieces) == len(self._store.lines) else None
            statistics.load(safetensors.torch.load_file(found.path / checkpoint.STATISTICS))
        self._ready()

    def take(self) -> list[Future[dict[str, Any]]]:
        """Order the copies; they are made when the shards have carried out what was ordered before."""
        since = [None] * len(self._store.lines) if self.since is None else [piece.to_json() for piece in self.since]
        return [line.order({"op": "take", "since": s}) for line, s in zip(self._store.lines, since, strict=True)]

    def _pieces(self, copy: list[Future[dict[str, Any]]]) -> list[checkpoint.Piece]:
        for future in copy:
            future.result()
        return [checkpoint.Piece.from_json(answer) for answer in self._store.write(str(self.folder.absolute()))]
