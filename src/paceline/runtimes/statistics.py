"""Running statistics of local batch normalisation: each worker's own, and what is exported of them.

They are never pushed and never pulled. What is evaluated, stored and served is the pooled one.
Source: data normalisation of Liu and Zhao, AAAI 2021, our reconstruction (our note on staleness, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.models.normalise import pool


class Statistics:
    """pooled: float32 [S], the last export; workers: each worker's own, float32 [S], by name. S may be 0.

    Not thread-safe.
    """

    def __init__(self, start: Tensor) -> None:
        self.pooled = start.clone()
        self.workers: dict[str, Tensor] = {}

    def of(self, worker: str) -> Tensor:
        """The worker's own; a newcomer starts from the last export, not from (0, 1)."""
        if worker not in self.workers:
            self.workers[worker] = self.pooled.clone()
        return self.workers[worker]

    def keep(self, workers: list[str]) -> None:
        """There are no other workers than these."""
        self.workers = {name: self.of(name) for name in workers}

    def forget(self, worker: str) -> None:
        """A worker is gone, and what it had with it."""
        self.workers.pop(worker, None)

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, as copies: "pooled" (of what the workers have now), and each worker's own."""
        return {name: tensor.clone() for name, tensor in {"pooled": self.current(), **self.workers}.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""
        self.workers = dict(tensors)
        self.pooled = self.workers.pop("pooled")

    def export(self) -> None:
        """Make what the workers have now the pooled one: what is evaluated, and what newcomers start from."""
        self.pooled = self.current()

    def current(self) -> Tensor:
        """What the workers have now, pooled."""
        if not self.workers or not self.pooled.numel():
            return self.pooled
        return pool(torch.stack([self.workers[name] for name in sorted(self.workers)]))
