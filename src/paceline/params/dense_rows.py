"""Row optimizers for dense parameters: each parameter tensor is one row. There is no second implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from paceline.params.row_optimizers import BUILT_IN
from paceline.params.sparse import Clock, SparseOptimizer

# Those that torch lacks. A sum of squares per "row" would be one per parameter tensor, so no row-wise form.
FOR_DENSE: dict[str, type[SparseOptimizer]] = {
    name: BUILT_IN[name] for name in ("ftrl", "adagrad_swap", "adam_swap", "rmsprop_swap", "ftrl_swap")
}


class RowsOptimizer(torch.optim.Optimizer):
    """A row optimizer's numpy `update` as an optimizer of torch.

    A parameter is one row of as many weights as it has elements, so it has one period counter, as the public kernels
    have for a dense variable. Its slots are the state "slots", float32 [slots], which `update` changes in place.

    parameters: float32 tensors on the CPU, contiguous. Set `clock` before each step.
    """

    def __init__(self, parameters: Iterable[Tensor], rows: SparseOptimizer) -> None:
        super().__init__(parameters, {})
        self.rows = rows
        self.clock: Clock | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. Raises ValueError if `clock` was never set."""
        if self.clock is None:
            raise ValueError("RowsOptimizer.clock must be set before the first step: periods are counted by it")
        if closure is not None:
            raise ValueError("RowsOptimizer.step takes no closure: gradients must be there already")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["slots"] = torch.from_numpy(self.rows.slot_start(p.numel()).copy())
                # `view`, which never copies: the update must reach the parameter itself.
                weights, slots = p.view(1, -1).numpy(), state["slots"].view(1, -1).numpy()
                self.rows.update(weights, slots, p.grad.reshape(1, -1).numpy(), self.clock)
