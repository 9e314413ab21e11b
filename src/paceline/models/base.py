"""What a model is: named parts of an embedding row, and a map from those rows and the dense inputs to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from paceline.models.normalise import LocalBatchNorm
from paceline.models.operators import FirstProjection

Normalise = Literal["none", "local_batch", "local_moving"]


@dataclass(frozen=True, slots=True)
class Part:
    """A named stretch of every id's row. std: standard deviation of what a new row starts from (0: zeros); max_norm:
    the length to which an update shortens it in the rows that it touches, if it is longer."""

    name: str
    width: int
    std: float = 0.01
    max_norm: float | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a model is built for: `fields` names the id fields in order, `dense` is the number of dense inputs,
    `normalise` whether a tower normalises what goes into its non-linearities; `types` names the types of feedback, the
    weakest first, where items are ranked."""

    fields: tuple[str, ...]
    dense: int
    normalise: Normalise = "none"
    types: tuple[str, ...] = ()


class Model(nn.Module, ABC):
    """A model maps tensors to logits and nothing else: no data, no optimizer. (What ranks items instead of predicting
    clicks has another loss: `paceline.models.ranking`.)

    A subclass takes `Inputs` and then keyword arguments with defaults (they are the keys of `model:` in job.yaml), and
    says which parts an id's row has. Parameters of the module are the dense parameters.
    """

    @abstractmethod
    def parts(self) -> tuple[Part, ...]:
        """The parts of a row, in the order in which they are stored."""

    @abstractmethod
    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        """Logits [B] from rows[part] [B, fields, width] and dense [B, dense inputs]."""

    def shape(self, samples: int) -> tuple[int, ...]:
        """Of what `forward` returns for so many samples."""
        return (samples,)

    def losses(self, out: Tensor, labels: Tensor) -> Tensor:
        """The loss of each sample [..., B], of what `forward` returned and of the labels: log loss."""
        return nn.functional.binary_cross_entropy_with_logits(out, labels, reduction="none")

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        """The mean of `losses` over one batch, []; torch's own mean rounds otherwise than a mean of them."""
        return nn.functional.binary_cross_entropy_with_logits(out, labels)


def normaliser(width: int, normalise: Normalise) -> LocalBatchNorm | None:
    """The layer on [B, width] that `normalise` asks for, if any."""
    return None if normalise == "none" else LocalBatchNorm(width, normalise == "local_moving")


def tower(width: int, hidden: Sequence[int], normalise: Normalise = "none") -> nn.Sequential:
    """Linear + ReLU layers, normalised between the two if asked: [B, width] -> [B, hidden[-1]]."""
    layers: list[nn.Module] = []
    for out in hidden:
        layers.append(nn.Linear(width, out))
        norm = normaliser(out, normalise)
        if norm is not None:
            layers.append(norm)
        layers.append(nn.ReLU())
        width = out
    return nn.Sequential(*layers)


class DeepTerm(nn.Module):
    """MLP on rows and dense inputs: [B, F, dim], [B, dense] -> [B]. The first layer is a sparse operator."""

    def __init__(self, inputs: Inputs, dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.first = FirstProjection(len(inputs.fields), dim, hidden[0])
        self.dense = nn.Linear(inputs.dense, hidden[0], bias=False) if inputs.dense else None
        self.norm = normaliser(hidden[0], inputs.normalise)
        self.rest = tower(hidden[0], hidden[1:], inputs.normalise)
        self.out = nn.Linear(hidden[-1], 1, bias=False)

    def forward(self, rows: Tensor, dense: Tensor) -> Tensor:
        first = self.first(rows)
        if self.dense is not None:
            first = first + self.dense(dense)
        if self.norm is not None:
            first = self.norm(first)
        logit: Tensor = self.out(self.rest(torch.relu(first))).squeeze(1)
        return logit


class Normalised(Model):
    """Another model on normalised dense inputs; so a user's model has them, too, without taking part itself.

    Source: local batch normalisation, AAAI 2021 Algorithm 1, our reconstruction.
    """

    def __init__(self, model: Model, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = LocalBatchNorm(inputs.dense, inputs.normalise == "local_moving")
        self.model = model

    def parts(self) -> tuple[Part, ...]:
        return self.model.parts()

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        logits: Tensor = self.model(rows, self.inputs(dense))
        return logits
