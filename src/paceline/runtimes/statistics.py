"""What belongs to a worker: its running statistics of local batch normalisation, and what it holds back of gradients.

Statistics are never pushed and never pulled. What is evaluated, stored and served is the pooled one.
Source: data normalisation of Liu and Zhao, AAAI 2021, our reconstruction (our note on staleness, section 3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.models.normalise import pool
from paceline.runtimes.holding import Holding

HELD = "held/"  # and the worker: what it holds back, among the tensors of a checkpoint


class Statistics:
    """pooled: float32 [S], the last export; workers: each worker's own, float32 [S], by name. S may be 0.
    holding: what workers hold back, if they do.

    Not thread-safe.
    """

    def __init__(self, start: Tensor, holding: Holding | None = None) -> None:
        self.pooled = start.clone()
        self.holding = holding
        self.workers: dict[str, Tensor] = {}

    def of(self, worker: str) -> Tensor:
        """The worker's own; a newcomer starts from the last export, not from (0, 1)."""
        if worker not in self.workers:
            self.workers[worker] = self.pooled.clone()
        return self.workers[worker]

    def keep(self, workers: list[str]) -> None:
        """There are no other workers than these."""
        self.workers = {name: self.of(name) for name in workers}
        if self.holding is not None:
            self.holding.keep(workers)

    def forget(self, worker: str) -> None:
        """A worker is gone, and what it had with it."""
        self.workers.pop(worker, None)
        if self.holding is not None:
            self.holding.forget(worker)

    def tensors(self, version: int | None = None) -> dict[str, Tensor]:
        """What a checkpoint of version `version` keeps, as copies: "pooled" (of what the workers have now), each
        worker's own, and as held/WORKER what it holds back."""
        own = {name: tensor.clone() for name, tensor in {"pooled": self.current(), **self.workers}.items()}
        held = {} if self.holding is None else self.holding.tensors(version)
        return {**own, **{HELD + name: tensor for name, tensor in held.items()}}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Go on from what `tensors` gave. What was held back is left out where nobody holds back any more."""
        self.workers = {name: tensor for name, tensor in tensors.items() if not name.startswith(HELD)}
        self.pooled = self.workers.pop("pooled")
        if self.holding is not None:
            held = {name.removeprefix(HELD): t for name, t in tensors.items() if name.startswith(HELD)}
            self.holding.load(held)

    def export(self) -> None:
        """Make what the workers have now the pooled one: what is evaluated, and what newcomers start from."""
        self.pooled = self.current()

    def current(self) -> Tensor:
        """What the workers have now, pooled."""
        if not self.workers or not self.pooled.numel():
            return self.pooled
        return pool(torch.stack([self.workers[name] for name in sorted(self.workers)]))
