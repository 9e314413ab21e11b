"""What the models share: named parameters, a layout of latent coordinates, looking up rows of tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.gp.encode import Rows, Vocabulary

ITEM = "item"


@dataclass(frozen=True, slots=True)
class Layout:
    """Which coordinates of a row's input belong to what: one block for the item, for each categorical and each real
    context.
    """

    tables: dict[str, int]  # entities of each block that has latent vectors
    dims: dict[str, int]  # coordinates of each block, in order

    @classmethod
    def of(cls, vocabulary: Vocabulary, dim: int, context_dim: int) -> Layout:
        tables = {ITEM: len(vocabulary.items), **{name: len(v) for name, v in vocabulary.contexts.items()}}
        dims = {name: dim if name == ITEM else context_dim for name in tables}
        return cls(tables, {**dims, **dict.fromkeys(vocabulary.reals, 1)})

    @property
    def width(self) -> int:
        return sum(self.dims.values())

    def places(self) -> dict[str, slice]:
        """The coordinates of each block."""
        found, start = {}, 0
        for name, dim in self.dims.items():
            found[name], start = slice(start, start + dim), start + dim
        return found


def entities(rows: Rows, layout: Layout) -> dict[str, Tensor]:
    """For each block with a table, the entity of each row [n] (UNSEEN where training had none)."""
    return {name: rows.item if n == 0 else rows.contexts[:, n - 1] for n, name in enumerate(layout.tables)}


def look_up(table: Tensor, index: Tensor, unseen: float | Tensor) -> Tensor:
    """`table` [A, ...] at `index` [...]; UNSEEN (-1) gives `unseen`."""
    last = torch.as_tensor(unseen, dtype=table.dtype).expand(1, *table.shape[1:])
    return torch.cat([table, last])[index]


class Model(ABC):
    """A model of ratings. parameters: by name, leaves that are optimised (fp64).

    The sum of `loss` over `batches` is the whole objective, to be minimised; it is a sum, not a mean, over rows.
    """

    parameters: dict[str, Tensor]

    @abstractmethod
    def batches(self, users: int | None, order: torch.Generator | None) -> Sequence[Any]:
        """All users, cut into parts of at most `users` (None: as large as memory likes), in an order drawn from
        `order`.
        """

    def begin(self, epoch: int) -> None:  # noqa: B027  (most models have nothing to do)
        """Called before each epoch (from 0)."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The objective's part of a batch; a scalar."""

    @abstractmethod
    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Means and variances of the ratings of new rows, both [n]; NaN where a model has no variances."""

    def importances(self) -> dict[str, list[float]] | None:
        """ARD weights of each block's coordinates, or None if the model has none."""
        return None

    def state(self) -> dict[str, Tensor]:
        """Copies of the parameters."""
        return {name: value.detach().clone() for name, value in self.parameters.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take parameters from `state`."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(state[name])


def leaves(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as fp64 leaves that gradients are taken of."""
    return {name: value.detach().double().clone().requires_grad_() for name, value in values.items()}


def average_biases(rows: Rows, layout: Layout, users: int) -> dict[str, Tensor]:
    """Biases to start from: the global mean, then shrunken averages of what is left, for users, items and contexts in
    turn.
    """
    left = rows.rating - rows.rating.mean()
    found = {"bias": rows.rating.mean()}
    for name, index, size in [
        ("user", rows.user, users),
        *((n, i, layout.tables[n]) for n, i in entities(rows, layout).items()),
    ]:
        total = torch.zeros(size, dtype=left.dtype).index_add_(0, index, left)
        count = torch.zeros(size, dtype=left.dtype).index_add_(0, index, torch.ones_like(left))
        found[f"bias.{name}"] = total / (count + 3)
        left = left - found[f"bias.{name}"][index]
    return {**found, "slope": torch.zeros(rows.reals.shape[1])}
