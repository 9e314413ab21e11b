"""What a model is: named parts of an embedding row, and a map from those rows and the dense inputs to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paceline.models.operators import FirstProjection


@dataclass(frozen=True, slots=True)
class Part:
    """A named stretch of every id's row. std: standard deviation of what a new row starts from (0: zeros)."""

    name: str
    width: int
    std: float = 0.01


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is built for: `fields` names the id fields in order, `dense` is the number of dense inputs."""

    fields: tuple[str, ...]
    dense: int


class Model(nn.Module, ABC):
    """A model maps tensors to logits and nothing else: no data, no optimizer, no loss.

    A subclass takes `Inputs` and then keyword arguments with defaults (they are the keys of `model:` in job.yaml), and
    says which parts an id's row has. Parameters of the module are the dense parameters.
    """

    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts of a row, in the order in which they are stored."""

    @abstractmethod
    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        """Logits [B] from rows[part] [B, fields, width] and dense [B, dense inputs]."""


def tower(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Linear + ReLU layers; ends with the last hidden layer's output."""
    layers: list[nn.Module] = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers)


class DeepTerm(nn.Module):
    """MLP on rows and dense inputs: [B, F, dim], [B, dense] -> [B]. The first layer is a sparse operator."""

    def __init__(self, inputs: Inputs, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.first = FirstProjection(len(inputs.fields), dim, hidden[0])
        self.dense = nn.Linear(inputs.dense, hidden[0], bias=False) if inputs.dense else None
        self.rest = tower(hidden[0], hidden[1:])
        self.out = nn.Linear(hidden[-1], 1, bias=False)

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        first = self.first(rows)
        if self.dense is not None:
            first = first + self.dense(dense)
        logit: Tensor = self.out(self.rest(torch.relu(first))).squeeze(1)
        return logit
