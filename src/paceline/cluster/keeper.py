"""The keeper of a cluster's run: each shard copies and writes its own piece, the coordinator makes them a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from paceline import checkpoint
from paceline.cluster.held import Held
from paceline.exchange.far import FarShards
from paceline.keeper import Keeper
from paceline.runtimes.statistics import HELD, Statistics


class ClusterKeeper(Keeper):
    """The order to copy goes to every shard behind the updates that were ordered before and ahead of those after, so
    all copies are of one version while gradients keep arriving. What workers hold back of their gradients is asked of
    them. ready: called when the shards have their state."""

    def __init__(self, folder: Path, keep: int, store: FarShards, ready: Callable[[], None], held: Held) -> None:
        super().__init__(folder, keep, None)
        self._store, self._ready, self._held = store, ready, held

    def _restore(self, found: checkpoint.Loaded | None, statistics: Statistics) -> None:
        self._store.connect(None if found is None else str(found.path.absolute()))
        if found is not None:
            self.since = list(found.pieces) if len(found.pieces) == len(self._store.lines) else None
            statistics.load(safetensors.torch.load_file(found.path / checkpoint.STATISTICS))
        holding = statistics.holding
        self._held.begin({} if holding is None else holding.tensors(), holding is not None)
        if holding is not None:
            holding.load({})  # from here on the workers have it
        self._ready()

    def take(self) -> tuple[list[Future[dict[str, Any]]], int]:
        """Order the copies; they are made when the shards have carried out what was ordered before."""
        number = self._held.want(self._store.version)
        since = [None] * len(self._store.lines) if self.since is None else [piece.to_json() for piece in self.since]
        lines = zip(self._store.lines, since, strict=True)
        return [line.order({"op": "take", "since": s}) for line, s in lines], number

    def _write(self, copy: Any, state: dict[str, Any], sound: int, statistics: dict[str, Tensor] | None) -> None:
        held = {HELD + process: tensor for process, tensor in self._held.collect(copy[1]).items()}
        super()._write(copy, state, sound, None if statistics is None else {**statistics, **held})

    def _pieces(self, copy: tuple[list[Future[dict[str, Any]]], int]) -> list[checkpoint.Piece]:
        for future in copy[0]:
            future.result()
        return [checkpoint.Piece.from_json(answer) for answer in self._store.write(str(self.folder.absolute()))]
