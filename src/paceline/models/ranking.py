"""Models that rank items for users, by types of feedback: what they have in common, and metric learning without memory.

A batch's fields are the user, the item of the interaction and the items that were drawn as negatives; its one dense
input is the number of the type. A model gives distances, and a small one ranks first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paceline.models.base import Inputs, Model, Part


class RankingModel(Model):
    """Learns to have every item of an interaction nearer to its user than the negatives, by a margin.

    `forward` returns for each sample and negative what the hinge is of, [B, negatives]:
    weight * (margin + distance of the item - distance of the negative); the loss is the mean of max(0, it).
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        if not inputs.types:
            raise ValueError("it ranks items and needs `interactions` (docs/mrmn.md)")
        self.types = inputs.types
        self.negatives = len(inputs.fields) - 2

    def shape(self, samples: int) -> tuple[int, ...]:
        return (samples, self.negatives)

    def losses(self, out: Tensor, labels: Tensor) -> Tensor:
        return torch.relu(out).mean(-1)

    def loss(self, out: Tensor, labels: Tensor) -> Tensor:
        return self.losses(out, labels).mean()

    def type_of(self, dense: Tensor) -> Tensor:
        """Numbers of the types, int64 [B], from the dense input [B, 1]."""
        return dense[:, 0].long().clamp(0, len(self.types) - 1)

    @abstractmethod
    def rank(self, users: Mapping[str, Tensor], items: Mapping[str, Tensor], types: Tensor) -> Tensor:
        """Distances [n, items] of every item to each of n users (rows[part] [n, width] and [items, width]) for the
        types int64 [n]; the nearest ranks first."""

    def told(self) -> dict[str, Any]:
        """What an evaluation says of the parameters, as JSON values."""
        return {}


class MetricModel(RankingModel):
    """A ranking model with one vector for each user and item, within the unit ball: `Part.max_norm` has the table
    project every row that an update touched."""

    def __init__(self, inputs: Inputs, dim: int, std: float) -> None:
        super().__init__(inputs)
        if std * (3 * dim) ** 0.5 > 1:  # of uniform numbers with that deviation the largest norm
            raise ValueError(f"std {std:g} has vectors of {dim} numbers begin outside the unit ball")
        self.dim = dim
        self._part = Part("vector", dim, std, max_norm=1.0)

    def parts(self) -> tuple[Part, ...]:
        return (self._part,)

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        vectors = rows["vector"]
        types = self.type_of(dense)
        distances = self.distances(vectors[:, :1], vectors[:, 1:], types)
        hinge = self.margin(types).unsqueeze(-1) + distances[:, :1] - distances[:, 1:]
        return self.weight(types).unsqueeze(-1) * hinge

    @abstractmethod
    def distances(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        """[B, n] from user [B, 1, dim], items [B, n, dim] (the interaction's first) and types [B]."""

    @abstractmethod
    def margin(self, types: Tensor) -> Tensor:
        """Of each sample, [B]."""

    def weight(self, types: Tensor) -> Tensor:
        """Of each sample in the loss, [B]."""
        return torch.ones_like(types, dtype=torch.float32)


class CML(MetricModel):
    """Collaborative metric learning (Hsieh et al., WWW 2017, eq. 1): D(u, v) = ||u - v||^2 within the unit ball.

    All types are one to it. Without that paper's rank weights (WARP) and its covariance penalty: it is the baseline
    with the loss of the models that it is compared with.
    """

    def __init__(self, inputs: Inputs, dim: int = 64, std: float = 0.05, margin: float = 0.5) -> None:
        super().__init__(inputs, dim, std)
        self._margin = margin

    def distances(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        return (user - items).square().sum(-1)

    def margin(self, types: Tensor) -> Tensor:
        return torch.full_like(types, self._margin, dtype=torch.float32)

    def rank(self, users: Mapping[str, Tensor], items: Mapping[str, Tensor], types: Tensor) -> Tensor:
        return squared_distances(users["vector"], items["vector"])


def squared_distances(users: Tensor, items: Tensor) -> Tensor:
    """||u - v||^2, [n, items], of users [n, dim] and items [items, dim]."""
    return users.square().sum(1, keepdim=True) - 2 * users @ items.T + items.square().sum(1)
