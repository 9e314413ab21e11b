"""The dense parameters: one flat vector behind the module, and an optimizer of torch, or a row optimizer as one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from paceline.errors import ConfigError
from paceline.naming import look_up
from paceline.params.dense_flat import FlatAdagrad
from paceline.params.dense_flat_rows import FlatRows
from paceline.params.dense_rows import FOR_DENSE, RowsOptimizer
from paceline.params.row_optimizers import row_optimizer
from paceline.params.sparse import Clock, SparseOptimizer

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type)
    and issubclass(cls, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
}


def flatten(module: nn.Module, names: Collection[str] | None = None) -> Tensor:
    """Lay the module's parameters (those called `names`, if given) out in one flat float32 vector, of which they become
    views, and return it."""
    parameters = [p for _, p in named(module, names)]
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]) if parameters else torch.zeros(0)
    start = 0
    for p in parameters:
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()
    return flat


def named(module: nn.Module, names: Collection[str] | None = None) -> list[tuple[str, nn.Parameter]]:
    """The module's parameters in their order, all or those called `names`."""
    return [(name, p) for name, p in module.named_parameters() if names is None or name in names]


def slices(module: nn.Module, shards: int) -> list[list[str]]:
    """The names of the parameters that each shard holds: stretches of the module's order, about equally long,
    and no parameter in two (an optimizer of torch may look at a whole parameter)."""
    found: list[list[str]] = [[] for _ in range(shards)]
    parameters = named(module)
    total, before = sum(p.numel() for _, p in parameters), 0
    for name, p in parameters:
        middle = before + p.numel() / 2
        found[min(int(middle * shards / max(total, 1)), shards - 1)].append(name)
        before += p.numel()
    return found


def slice_sizes(module: nn.Module, shards: int) -> list[int]:
    """How many numbers each shard holds of the flat vector (see `slices`)."""
    sizes = {name: p.numel() for name, p in named(module)}
    return [sum(sizes[name] for name in names) for names in slices(module, shards)]


def make_optimizer(
    name: str, options: dict[str, Any], module: nn.Module, names: Collection[str] | None = None
) -> torch.optim.Optimizer:
    """Any optimizer of torch.optim by its lower-case name, one of `FOR_DENSE`, or 'package.module:Class', which is an
    optimizer of torch or a row optimizer. names: of the parameters that it optimizes (default: all).

    Raises ConfigError naming `optimizer.dense`, and the option if it is a row optimizer's.
    """
    chosen = look_up("optimizer.dense.name", "dense optimizer", name, {**OPTIMIZERS, **FOR_DENSE})
    is_rows = isinstance(chosen, type) and issubclass(chosen, SparseOptimizer)
    rows = row_optimizer("optimizer.dense", name, chosen, options) if is_rows else None
    parameters = [p for _, p in named(module, names)]
    if not parameters:
        return torch.optim.SGD([torch.zeros(0, requires_grad=True)], lr=0.0)  # of a shard without dense parameters
    try:
        made: torch.optim.Optimizer = chosen(parameters, **options) if rows is None else RowsOptimizer(parameters, rows)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.dense: {name} cannot take {options}: {error}") from error
    return made


class DenseBlock:
    """The dense parameters of a module (those called `names`, if given) and their optimizer. Not thread-safe: its owner
    serialises calls."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, names: Collection[str] | None = None
    ) -> None:
        self.optimizer = optimizer
        self.flat = flatten(module, names)
        self.named = named(module, names)
        self._parameters = [p for _, p in self.named]  # once: to walk the module's tree costs more than the views
        self._sizes = [p.numel() for p in self._parameters]
        fits = FlatAdagrad.fits(optimizer, self._parameters)
        self._adagrad = FlatAdagrad(optimizer, self._parameters, self.flat) if fits else None
        self._rows: FlatRows | None = None
        if isinstance(optimizer, RowsOptimizer) and FlatRows.fits(optimizer, self._parameters):
            self._rows = FlatRows(optimizer, self._parameters, self.flat)

    def applied(self) -> Tensor | None:
        """The sum of all gradients that were applied, float32 [parameters], if the optimizer asks what a gradient
        missed (see `paceline.params.delay`): what a pull of the dense parameters brings along."""
        found = None if self._rows is None else self._rows.applied()
        if found is None and isinstance(self.optimizer, RowsOptimizer):
            return self.optimizer.applied()
        return found

    def apply(
        self, gradient: Tensor, clock: Clock, part: float = 1.0, late: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """One optimizer step with the flat gradient, float32 [parameters]. torch's own optimizers count steps
        themselves; the clock is for row optimizers. part: of the step that is taken; late: overlap and missed of
        `paceline.params.delay`, float32 [parameters] each."""
        before = self.flat.clone() if part < 1.0 else None
        if self._adagrad is not None:
            done = self._adagrad.step(gradient)
        else:
            done = self._rows is not None and self._rows.step(gradient, clock, late)
        if not done:
            self._step(gradient, clock, late)
        if before is not None:
            with torch.no_grad():
                self.flat.sub_(before).mul_(part).add_(before)

    def _step(self, gradient: Tensor, clock: Clock, late: tuple[Tensor, Tensor] | None) -> None:
        # New views cost no more than copying the gradient behind lasting ones, and not the more the larger the model.
        for p, piece in zip(self._parameters, torch.split(gradient, self._sizes), strict=True):
            p.grad = piece.view_as(p)
        if isinstance(self.optimizer, RowsOptimizer):
            self.optimizer.clock, self.optimizer.late = clock, late
        self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        """Named parameters (copies)."""
        return {name: p.detach().clone() for name, p in self.named}

    def slots(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimizer's state (copies): tensors by 'parameter name/key', and as JSON values what is no tensor, by
        parameter and key under "state", beside the options under "param_groups".

        It is named by parameter, not by number, so that a parameter may go on in another shard.
        """
        if self._rows is not None:
            self._rows.give_back()
        state = self.optimizer.state_dict()
        names = self._by_number()
        tensors: dict[str, Tensor] = {}
        groups = [{k: _plain(v) for k, v in group.items() if k != "params"} for group in state["param_groups"]]
        rest: dict[str, Any] = {"param_groups": groups, "state": {}}
        for number, values in state["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"{names[number]}/{key}"] = value.detach().clone().contiguous()
                else:
                    rest["state"].setdefault(names[number], {})[key] = value
        return tensors, rest

    def load(
        self, weights: dict[str, Tensor], tensors: dict[str, Tensor] | None = None, rest: dict[str, Any] | None = None
    ) -> None:
        """Put back what `weights` and `slots` gave, of these parameters at least (without `tensors` and `rest`, the
        optimizer starts anew). Rates and other options stay those of this optimizer: a resumed run may change them."""
        with torch.no_grad():
            for name, p in self.named:
                p.copy_(weights[name])
        numbers = {name: number for number, name in enumerate(self._by_number())}
        state: dict[int, dict[str, Any]] = {
            numbers[name]: dict(values) for name, values in (rest or {"state": {}})["state"].items() if name in numbers
        }
        for full, tensor in (tensors or {}).items():
            name, _, key = full.rpartition("/")
            if name in numbers:
                state.setdefault(numbers[name], {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self._rows is not None:
            self._rows.forget()

    def _by_number(self) -> list[str]:
        """Names of the parameters in the order of the optimizer's own numbers."""
        names = {id(p): name for name, p in self.named}
        return [names.get(id(p), "") for group in self.optimizer.param_groups for p in group["params"]]


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return list(value) if isinstance(value, tuple) else value
