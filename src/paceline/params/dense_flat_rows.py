"""A row optimizer's step in one go over the flat vector of all dense parameters: the same numbers, in fewer calls.

A small model consists of calls: of a step of AdagradSWAP with ten parameters they are nine tenths. The row optimizers
for dense parameters are element by element, and what they count by parameter (periods, updates) counts alike in all of
them; so the flat vector is one row, bit for bit (a test compares them).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from paceline.params.delay import DelayAware
from paceline.params.dense_rows import FOR_DENSE, RowsOptimizer
from paceline.params.sparse import Clock, Floats


class FlatRows:
    """Steps of `optimizer`, of parameters that lie one after another in `flat`.

    From the first step on the slots are here, and the optimizer's state lags behind: `give_back` before anybody looks
    at it, `forget` when somebody has changed it.
    """

    def __init__(self, optimizer: RowsOptimizer, parameters: list[nn.Parameter], flat: Tensor) -> None:
        self._optimizer, self._parameters = optimizer, parameters
        self._weights: Floats = flat.numpy().reshape(1, -1)
        self._sizes = [p.numel() for p in parameters]
        one, two = optimizer.rows.slots(1), optimizer.rows.slots(2)
        self._each, self._shared = two - one, 2 * one - two  # slots for each weight, and for the row
        self._slots: Floats | None = None  # [1, each * weights + shared]

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
        """Whether the steps are the same: one of ours, all parameters in their order, at least one."""
        if not isinstance(optimizer, RowsOptimizer) or type(optimizer.rows) not in FOR_DENSE.values():
            return False
        its = [p for group in optimizer.param_groups for p in group["params"]]
        return bool(parameters) and [id(p) for p in its] == [id(p) for p in parameters]

    def step(self, gradient: Tensor, clock: Clock, late: tuple[Tensor, Tensor] | None) -> bool:
        """One step with the flat gradient (and overlap and missed of `paceline.params.delay`), float32 [parameters].
        False, and nothing was done, if what is counted by parameter differs."""
        slots = self._slots if self._slots is not None else self._take_over()
        if slots is None:
            return False
        rows, grads = self._optimizer.rows, gradient.detach().numpy().reshape(1, -1)
        if late is not None and isinstance(rows, DelayAware):
            overlap, missed = (each.numpy().reshape(1, -1) for each in late)
            rows.update_late(self._weights, slots, grads, overlap, missed, clock)
        else:
            rows.update(self._weights, slots, grads, clock)
        return True

    def applied(self) -> Tensor | None:
        """The sums of a `DelayAware` optimizer, float32 [parameters], a copy; None: ask the optimizer."""
        if self._slots is None or not isinstance(self._optimizer.rows, DelayAware):
            return None
        return torch.from_numpy(self._slots[0, -self._weights.shape[1] :].copy())

    def give_back(self) -> None:
        """Bring the optimizer's state up to date."""
        if self._slots is None:
            return
        many, start = self._each * self._weights.shape[1], 0
        parts = self._slots[0, :many].reshape(self._each, -1)
        for p, size in zip(self._parameters, self._sizes, strict=True):
            own = np.concatenate([parts[:, start : start + size].reshape(-1), self._slots[0, many:]])
            self._optimizer.slots_of(p).copy_(torch.from_numpy(own))
            start += size

    def forget(self) -> None:
        """Go on from the optimizer's state."""
        self._slots = None

    def _take_over(self) -> Floats | None:
        """The optimizer's state as one row: None if it cannot be."""
        each, shared = [], []
        for p, size in zip(self._parameters, self._sizes, strict=True):
            own = self._optimizer.slots_of(p).numpy()
            each.append(own[: self._each * size].reshape(self._each, size))
            shared.append(own[self._each * size :])
        if any(not np.array_equal(other, shared[0]) for other in shared[1:]):
            return None
        self._slots = np.concatenate([np.concatenate(each, axis=1).reshape(-1), shared[0]])[None]
        return self._slots
