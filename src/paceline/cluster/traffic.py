"""What went over the network by push and pull, and what should have."""

from __future__ import annotations

import threading
from typing import Any

from paceline.exchange.thin import thin_bytes

KINDS = ("ids", "rows", "row_gradients", "dense", "dense_gradients", "dense_gradients_places")


class Traffic:
    """Bytes of arrays between processes, by kind. slices: dense parameters of each shard; width: weights of a row;
    nodes: how many workers have one of the shards beside them (worker k shard k); value: bytes of a row's number; kept:
    how many entries of each slice's gradient leave, where workers hold back the others."""

    def __init__(
        self, slices: list[int], width: int, nodes: int, workers: int, value: int, kept: list[int] | None = None
    ) -> None:
        whole = [(4.0 * size, 0.0) for size in slices]
        thinned = [thin_bytes(size, left) for size, left in zip(slices, kept or [], strict=kept is not None)]
        self._pushed = thinned or whole  # (bytes of values, of their places) of each slice's gradient
        self._slices, self._width, self._nodes, self._workers, self._value = slices, width, nodes, workers, value
        self._before, self._since = 0, 0  # updates times workers until the number of these changed, and updates then
        self._lock = threading.Lock()
        self._measured: dict[str, float] = {}
        self._predicted: dict[str, float] = {}
        self.busy: dict[str, float] = {}  # share of its time that each worker by push and pull has computed

    def add(self, worker: int, carried: dict[str, int]) -> None:
        """A gradient was pushed. carried: by kind, and `distinct`: ids of its batch, `fresh`: whether its pull had to
        bring the dense parameters."""
        distinct, fresh = carried["distinct"], carried["fresh"]
        beside = worker < self._nodes
        rows = distinct * (len(self._slices) - beside) / len(self._slices)
        dense = sum(self._slices) - (self._slices[worker] if beside else 0)
        each = rows * self._width * self._value
        values, places = (
            sum(told[k] for told in self._pushed) - (self._pushed[worker][k] if beside else 0) for k in (0, 1)
        )
        expected = (8 * rows, each, each, 4 * dense * fresh, values, places)
        with self._lock:
            for kind, count in zip(KINDS, expected, strict=True):
                if kind == "dense_gradients_places" and not count and kind not in carried:
                    continue
                self._predicted[kind] = self._predicted.get(kind, 0) + count
                self._measured[kind] = self._measured.get(kind, 0) + carried.get(kind, 0)

    def add_step(self, sent: dict[str, float], predicted: dict[str, float]) -> None:
        """A process took part in a step of collectives: bytes by kind."""
        with self._lock:
            for total, more in ((self._measured, sent), (self._predicted, predicted)):
                for kind, count in more.items():
                    total[kind] = total.get(kind, 0) + count

    def staff(self, workers: int, updates: int) -> None:
        """There are so many workers after `updates` updates."""
        with self._lock:
            self._before += (updates - self._since) * self._workers
            self._since, self._workers = updates, workers

    def forget(self, worker: str) -> None:
        """It is gone; what it sent counts."""
        self.busy.pop(worker, None)

    def per_update(self, updates: int) -> dict[str, Any]:
        """Bytes of a worker and update, by kind, measured and predicted."""
        with self._lock:
            share = max(self._before + (updates - self._since) * self._workers, self._workers)
            return {
                "bytes_predicted": {kind: round(count / share, 1) for kind, count in self._predicted.items()},
                "busy_share": round(sum(self.busy.values()) / len(self.busy), 5) if self.busy else None,
                "bytes_measured": {kind: round(count / share, 1) for kind, count in self._measured.items()},
            }
