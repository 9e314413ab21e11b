"""DCN-v2 (Wang et al., WWW 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paceline.models.base import Inputs, Model, Part, tower
from paceline.models.operators import FieldSum


class CrossLayer(nn.Module):
    """x_{l+1} = x_0 * (W x_l + b) + x_l (eq. 1); with `rank`, W = U V^T (eq. 2)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.map: nn.Module = (
            nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            if rank
            else nn.Linear(width, width)
        )

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        crossed: Tensor = first * self.map(x) + x
        return crossed


class DCNv2(Model):
    """The parallel structure: logit = w^T [cross(x_0), mlp(x_0)] + b, x_0 = rows of all fields and dense inputs.

    rank: of the cross matrices, 0 for full ones.
    """

    def __init__(
        self,
        inputs: Inputs,
        dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        cross_layers: int = 2,
        rank: int = 64,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        width = len(inputs.fields) * dim + inputs.dense
        self.fields = FieldSum()
        self.cross = nn.ModuleList(CrossLayer(width, rank) for _ in range(cross_layers))
        self.deep = tower(width, hidden, inputs.normalise)
        self.out = nn.Linear(width + hidden[-1], 1)
        self._parts = (Part("embedding", dim, std),)

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        x = self.fields(rows["embedding"]).flatten(1)
        if dense.shape[1]:
            x = torch.cat([x, dense.to(x.dtype)], dim=1)
        crossed = x
        for layer in self.cross:
            crossed = layer(x, crossed)
        logit: Tensor = self.out(torch.cat([crossed, self.deep(x)], dim=1)).squeeze(1)
        return logit
