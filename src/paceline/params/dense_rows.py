"""Row optimizers for dense parameters: each parameter tensor is one row. There is no second implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paceline.params.delay import DelayAware
from paceline.params.row_optimizers import BUILT_IN
from paceline.params.sparse import Clock, SparseOptimizer

# Those that torch lacks. A sum of squares per "row" would be one per parameter tensor, so no row-wise form.
FOR_DENSE: dict[str, type[SparseOptimizer]] = {
    name: BUILT_IN[name] for name in ("ftrl", "adagrad_swap", "adam_swap", "rmsprop_swap", "ftrl_swap", "adagrad_delay")
}


class RowsOptimizer(torch.optim.Optimizer):
    """A row optimizer's numpy `update` as an optimizer of torch.

    A parameter is one row of as many weights as it has elements, so it has one period counter, as the public kernels
    have for a dense variable. Its slots are the state "slots", float32 [slots], which `update` changes in place.

    parameters: float32 tensors on the CPU, contiguous. Set `clock` before each step, and `late` for a `DelayAware` one:
    (overlap, missed) of all parameters, one after another, float32 [parameters] each; None: nothing was missed.
    """

    def __init__(self, parameters: Iterable[Tensor], rows: SparseOptimizer) -> None:
        super().__init__(parameters, {})
        self.rows = rows
        self.clock: Clock | None = None
        self.late: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Raises ValueError if `clock` was never set."""
        if self.clock is None:
            raise ValueError("RowsOptimizer.clock must be set before the first step: periods are counted by it")
        if closure is not None:
            raise ValueError("RowsOptimizer.step takes no closure: gradients must be there already")
        start = 0
        for group in self.param_groups:
            for p in group["params"]:
                start += p.numel()
                if p.grad is None:
                    continue
                # `view`, which never copies: the update must reach the parameter itself.
                weights, slots = p.view(1, -1).numpy(), self.slots_of(p).view(1, -1).numpy()
                grads = p.grad.reshape(1, -1).numpy()
                if self.late is not None and isinstance(self.rows, DelayAware):
                    overlap, missed = (each[start - p.numel() : start].view(1, -1).numpy() for each in self.late)
                    self.rows.update_late(weights, slots, grads, overlap, missed, self.clock)
                else:
                    self.rows.update(weights, slots, grads, self.clock)

    def applied(self) -> Tensor | None:
        """The sums of the gradients that all parameters have had, one after another, float32 [parameters], if the row
        optimizer is `DelayAware` (a copy)."""
        if not isinstance(self.rows, DelayAware):
            return None
        return torch.cat([self.slots_of(p)[-p.numel() :] for group in self.param_groups for p in group["params"]])

    def slots_of(self, p: Tensor) -> Tensor:
        """A parameter's slots, float32 [slots] (itself, no copy)."""
        state = self.state[p]
        if not state:
            state["slots"] = torch.from_numpy(self.rows.slot_start(p.numel()).copy())
        slots: Tensor = state["slots"]
        return slots
