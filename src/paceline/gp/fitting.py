"""How a model is fitted: epochs of L-BFGS on everything, or of steps on a few users at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paceline.errors import LossError
from paceline.gp.config import FactorizeConfig
from paceline.gp.models import Model


class RowMomentum(torch.optim.Optimizer):
    """SGD whose momentum belongs to a row (a user, an item, a context value) and moves only when the row has a
    gradient.

    Source: the public code of Nguyen et al., SIGIR 2014 (a momentum buffer per user and per entity).
    """

    def __init__(self, parameters: list[Tensor], lr: float, momentum: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is None:
                    continue
                buffer = self.state[value].setdefault("buffer", torch.zeros_like(value))
                touched = value.grad != 0 if value.ndim < 2 else (value.grad != 0).any(-1, keepdim=True)
                buffer.copy_(torch.where(touched, group["momentum"] * buffer + value.grad, buffer))
                value.sub_(torch.where(touched, group["lr"] * buffer, 0.0))


class Fitter:
    """Fits a model epoch by epoch. An epoch depends on the state before it, the seed and its number, and nothing
    else.
    """

    def __init__(self, model: Model, config: FactorizeConfig) -> None:
        self.model, self.config = model, config
        leaves, training = list(model.parameters.values()), config.training
        self.optimizer: torch.optim.Optimizer | None = None
        if config.method == "adam":
            self.optimizer = torch.optim.Adam(leaves, lr=config.rate)
        elif config.method == "sgd":
            self.optimizer = RowMomentum(leaves, config.rate, training.momentum)

    def epoch(self, number: int, tick: Callable[[float], None]) -> float:
        """Fit for one epoch; `tick` is told how much of it is done. Returns the objective (stochastic: summed over
        the steps).

        Raises LossError if it is not finite.
        """
        self.model.begin(number)
        if self.config.method == "lbfgs":
            return self._lbfgs(tick)
        order = torch.Generator().manual_seed((self.config.seed * 1_000_003 + number) % 2**63)
        assert self.optimizer is not None
        batches, total = self.model.batches(self.config.step_users, order), 0.0
        for done, batch in enumerate(batches, 1):
            self.optimizer.zero_grad()
            loss = self.model.loss(batch)
            self._check(loss.item())
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item()
            tick(done / len(batches))
        return total

    def _lbfgs(self, tick: Callable[[float], None]) -> float:
        """`iterations` of L-BFGS. Its memory begins anew in each epoch, so that a run can go on after any of them."""
        steps, evaluations = self.config.training.iterations, 0
        optimizer = torch.optim.LBFGS(
            list(self.model.parameters.values()),
            max_iter=steps, max_eval=2 * steps, history_size=20, line_search_fn="strong_wolfe",
            tolerance_grad=1e-5, tolerance_change=1e-9,
        )  # fmt: skip

        def closure() -> float:
            nonlocal evaluations
            optimizer.zero_grad()
            total = 0.0
            for batch in self.model.batches(None, None):
                loss = self.model.loss(batch)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            evaluations += 1
            tick(min(1.0, evaluations / (1.25 * steps)))
            return total

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            total = sum(self.model.loss(batch).item() for batch in self.model.batches(None, None))
        self._check(total)
        return total

    def _check(self, loss: float) -> None:
        if not torch.isfinite(torch.tensor(loss)):
            raise LossError(f"the objective is {loss}: lower training.lr (now {self.config.rate:g}) or take lbfgs")

    def slots(self) -> dict[str, Tensor]:
        """What the optimizer remembers, by name."""
        if self.optimizer is None:
            return {}
        names, found = list(self.model.parameters), {}
        for value, slots in self.optimizer.state.items():
            name = next(n for n in names if self.model.parameters[n] is value)
            found.update({f"{name}/{slot}": torch.as_tensor(t) for slot, t in slots.items()})
        return found

    def load(self, slots: dict[str, Tensor]) -> None:
        """Take back what `slots` gave."""
        if self.optimizer is None:
            return
        for key, value in slots.items():
            name, slot = key.rsplit("/", 1)
            self.optimizer.state[self.model.parameters[name]][slot] = value.clone()
