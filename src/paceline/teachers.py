"""Codistillation, a worker's side: predictions of the other groups' models, from copies that are out of date.

Source: Anil et al., ICLR 2018 (arXiv 1804.03235), by stale copies: a group's checkpoint is the copy that the others
learn from. Which ones hold is said by the lease, so that all workers of a group have the same teachers at the same
sample, in every runtime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from paceline import checkpoint
from paceline.batch import Batch, Floats
from paceline.errors import StorageError
from paceline.exchange.direct import DirectRoute, Pulled
from paceline.params.shard import Shard
from paceline.runtimes.compute import Replica
from paceline.runtimes.coordinator import Lease
from paceline.runtimes.statistics import Statistics


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A copy of another group's model, which is only read."""

    path: Path
    route: DirectRoute
    replica: Replica


_TRIES = 5


class Teachers:
    """Of all workers of a process. make: a fresh shard and a replica of the model."""

    def __init__(self, make: Callable[[], tuple[Shard, Replica]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._held: dict[Path, _Teacher] = {}  # by the checkpoints' folder of the group

    def taught(self, lease: Lease) -> Lease:
        """The lease, its batch with the mean of the teachers' predictions if it names any. Raises StorageError if
        a teacher cannot be read."""
        if not lease.teachers:
            return lease
        predictions = [self._predict(self._of(Path(name)), lease.batch) for name in lease.teachers]
        soft: Floats = np.asarray(np.stack(predictions).mean(axis=0, dtype=np.float64), np.float32)
        return replace(lease, batch=replace(lease.batch, soft=soft))

    def _of(self, path: Path) -> _Teacher:
        with self._lock:
            held = self._held.get(path.parent)
            if held is None or held.path != path:
                held = self._held[path.parent] = self._load(path)
            return held

    def _load(self, path: Path) -> _Teacher:
        for wanted in (path, *[None] * _TRIES):
            # Its group may have newer ones, and clear this one away meanwhile.
            chosen = next(iter(checkpoint.committed(path.parent)), path) if wanted is None else wanted
            shard, replica = self._make()
            statistics = Statistics(replica.statistics)
            try:
                checkpoint.restore(checkpoint.read(chosen), shard, dense_optimizer=False, statistics=statistics)
                break
            except OSError as error:
                gone = error
        else:
            raise StorageError(f"{path}: what another group left is gone ({gone}); does somebody clear that folder?")
        with torch.no_grad():
            shard.pull_dense(replica.flat)
            replica.statistics.copy_(statistics.pooled)
        replica.model.eval()
        return _Teacher(path, DirectRoute(shard), replica)

    @torch.no_grad()
    def _predict(self, teacher: _Teacher, batch: Batch) -> Floats:
        """Click probabilities [B]. An id that the teacher never saw has the row that it would start from in the mean,
        which is zero (the note's decision): its own first draw would be noise."""
        pulled = teacher.route.read(batch.flat_ids())
        weights = pulled.weights.copy()
        weights[pulled.numbers < 0] = 0.0
        known = Pulled(pulled.numbers, weights, pulled.inverse, pulled.counts)
        logits = teacher.replica.score(batch, known)
        return np.asarray(torch.sigmoid(logits.double()).float().numpy(), np.float32)
