"""Hard thresholds with error feedback: what a worker sends of its dense gradients, and what it holds back for later.

Source: DCT-DP (Gupta et al., KDD 2021, arXiv 2010.08899), reconstructed; our note on DCT, section 3.1. For each tensor,
C = gradient + what was held back; entries of C that reach the threshold leave, the others are held back. The threshold
is the m-th largest |C| of a step in so many, m = ceil(keep * entries), and is kept in between.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from paceline.params.dense import slices

SMALLEST = 256  # entries: tensors with fewer go whole, as in the public implementation
_WARM = 20  # steps after which the first threshold, of gradients that are untypically large, is renewed


@dataclass(frozen=True, slots=True)
class Thinning:
    """keep: share of a tensor's entries that leave, at a step that renews the threshold; refresh: steps between two of
    those; smallest: entries of a tensor below which it goes whole."""

    keep: float
    refresh: int
    smallest: int = SMALLEST


def kept_entries(keep: float, entries: int) -> int:
    """m = max(1, ceil(keep * entries)), where keep is as it was written: 1 - 0.99 is a little above 0.01 in floating
    point and must not count for an entry more."""
    return max(1, math.ceil(keep * entries - 1e-9))


def expected_entries(thinning: Thinning, sizes: Iterable[int]) -> int:
    """How many entries of tensors of these sizes leave, at a step that renews the thresholds."""
    return sum(n if n < thinning.smallest or thinning.keep >= 1 else kept_entries(thinning.keep, n) for n in sizes)


def kept_of_slices(module: nn.Module, shards: int, thinning: Thinning) -> list[int]:
    """The same of the slice of `module`'s parameters that each of `shards` shards holds."""
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    return [expected_entries(thinning, [sizes[name] for name in names]) for names in slices(module, shards)]


@final
class Feedback:
    """One worker's. sizes: entries of each tensor, in the order of the flat gradient.

    held: float32 [parameters], what is held back; thresholds: float32 [tensors]; steps: gradients that were filtered.
    What was held before the first gradient of the newest version is remembered: a snapshot that is taken before the
    next version has those gradients computed again. May be used by any thread.
    """

    def __init__(self, sizes: Sequence[int], thinning: Thinning) -> None:
        self.thinning = thinning
        self._lock = threading.RLock()
        self._sizes = list(sizes)
        self.held = torch.zeros(sum(sizes))
        self.thresholds = torch.zeros(len(self._sizes))
        self.steps = 0
        self.sent = 0  # entries that were not zero, of the last gradient
        self._loaded = False
        self._last: tuple[Tensor, Tensor, int] | None = None  # held, thresholds, steps before the last gradient
        self._version: int | None = None  # of the parameters that the last gradient was computed on
        self._before: tuple[Tensor, Tensor, int] = (self.held, self.thresholds, 0)  # held, thresholds, steps then

    @torch.no_grad()
    def filter(self, gradient: Tensor, version: int | None = None) -> Tensor:
        """What is sent of `gradient`, float32 [parameters]: zero where nothing is. Together with `held` it is the
        gradient plus what was held before, every entry whole on one side. version: of the parameters that it was
        computed on."""
        if self.thinning.keep >= 1.0:
            self.sent = int(gradient.count_nonzero())
            return gradient
        with self._lock:
            if version is None or version != self._version:
                self._version, self._before = version, (self.held, self.thresholds.clone(), self.steps)
            self._last = (self.held, self.thresholds.clone(), self.steps)
            return self._filter(gradient)

    def _filter(self, gradient: Tensor) -> Tensor:
        total = gradient + self.held
        leaves = total != 0.0
        for k, (piece, stays) in enumerate(
            zip(torch.split(total, self._sizes), torch.split(leaves, self._sizes), strict=True)
        ):
            if piece.numel() < self.thinning.smallest:
                continue
            size = piece.abs()
            if self._renews() or not self.thresholds[k]:  # one of zero, of few entries that were not, would let all out
                self.thresholds[k] = _threshold(size, self.thinning.keep)
            stays.logical_and_(size >= self.thresholds[k])
        self.steps += 1
        nothing = total.new_zeros(())
        sent = torch.where(leaves, total, nothing)
        self.held = torch.where(leaves, nothing, total)
        self.sent = int(leaves.count_nonzero())
        return sent

    def undo(self) -> None:
        """The last gradient does not count: everything is as before it."""
        with self._lock:
            if self._last is not None:
                (self.held, self.thresholds, self.steps), self._last = self._last, None

    def _renews(self) -> bool:
        return self.steps % self.thinning.refresh == 0 or self.steps == _WARM

    def state(self, version: int | None = None) -> Tensor:
        """Everything, float32 [parameters + tensors + 2], in a form that a checkpoint keeps. version: of the parameters
        in that checkpoint: gradients that were computed on it are in none of its updates, and count as never filtered.
        """
        with self._lock:
            undone = version is not None and version == self._version
            held, thresholds, steps = self._before if undone else (self.held, self.thresholds, self.steps)
            high, low = divmod(steps, 1 << 20)  # each is exact in float32
            return torch.cat([held, thresholds, torch.tensor([float(high), float(low)])])

    def load(self, state: Tensor) -> None:
        """Go on from `state`. Raises ValueError if it is another model's."""
        expected = self.held.numel() + self.thresholds.numel() + 2
        if state.shape != (expected,):
            raise ValueError(f"{state.numel()} numbers where a worker of this model keeps {expected}")
        with self._lock:
            self.thresholds = state[self.held.numel() : -2].clone()
            self.held = state[: self.held.numel()].clone()
            self.steps = int(state[-2]) * (1 << 20) + int(state[-1])
            self._version = None

    def load_once(self, state: Tensor) -> None:
        """The same, unless it has been done or gradients were filtered: of all who ask for it the first does it."""
        with self._lock:
            if self._loaded or self.steps:
                return
            self._loaded = True
            self.load(state)


def _threshold(size: Tensor, keep: float) -> float:
    """The m-th largest of float32 [entries]. Entries that are not zero and not below it leave."""
    return float(torch.topk(size, kept_entries(keep, size.numel()), sorted=False).values.min())
