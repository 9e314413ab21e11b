"""torch's Adagrad in one call over the flat vector of all dense parameters: the same numbers, a ninth of the time.

An optimizer of torch works tensor by tensor, and a small model consists of calls. Adagrad is element by element, so a
step of the whole flat vector is the same bit for bit (a test compares them). The fused Adam and SGD with momentum of
torch are not: they round the last few elements of a tensor otherwise than the ones before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adagrad import adagrad

_OPTIONS = ("lr", "lr_decay", "eps", "maximize", "foreach", "fused")


class FlatAdagrad:
    """Steps of `optimizer`, a plain `torch.optim.Adagrad` of `parameters`, which lie one after another in `flat`.

    The state stays the optimizer's, by parameter: its sums become views of one flat vector and its step counters one
    tensor. Where somebody has put other tensors there (a checkpoint was loaded), they are taken over.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], flat: Tensor) -> None:
        self._optimizer, self._parameters, self._flat = optimizer, parameters, flat
        self._sum = torch.zeros(0)
        self._step = torch.zeros(())
        self._first: Tensor | None = None  # the sum of the first parameter, as the optimizer has it

    @staticmethod
    def fits(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> bool:
        """Whether the steps are the same: Adagrad itself, no weight decay, one group, at least one parameter."""
        if type(optimizer) is not torch.optim.Adagrad or len(optimizer.param_groups) != 1 or not parameters:
            return False
        group = optimizer.param_groups[0]
        same = len(group["params"]) == len(parameters) and all(map(_is, group["params"], parameters))
        return same and group["weight_decay"] == 0 and not group["differentiable"]

    def step(self, gradient: Tensor) -> bool:
        """One step with the flat gradient, float32 [parameters]. False, and nothing was done, if the parameters' step
        counters differ."""
        if self._optimizer.state[self._parameters[0]]["sum"] is not self._first and not self._take_over():
            return False
        group = self._optimizer.param_groups[0]
        adagrad(
            [self._flat],
            [gradient],
            [self._sum],
            [self._step],
            weight_decay=0.0,
            has_sparse_grad=False,
            differentiable=False,
            has_complex=False,
            **{name: group[name] for name in _OPTIONS},
        )
        return True

    def _take_over(self) -> bool:
        """The optimizer's state as one: whether it can be."""
        states = [self._optimizer.state[p] for p in self._parameters]
        steps = {float(state["step"]) for state in states}
        if len(steps) > 1:
            return False
        self._sum = torch.cat([state["sum"].reshape(-1) for state in states])
        self._step = states[0]["step"]
        start = 0
        for p, state in zip(self._parameters, states, strict=True):
            state["sum"] = self._sum[start : start + p.numel()].view_as(p)
            state["step"] = self._step
            start += p.numel()
        self._first = states[0]["sum"]
        return True


def _is(a: object, b: object) -> bool:
    return a is b
