"""DLRM (Naumov et al., arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from paceline.models.base import Inputs, Model, Part, tower
from paceline.models.operators import FieldSum


class DLRM(Model):
    """Bottom MLP on the dense inputs, dot products of all pairs of vectors, top MLP on the products.

    Without dense inputs there is no bottom MLP and the interaction is among the fields alone.
    """

    def __init__(
        self,
        inputs: Inputs,
        dim: int = 16,
        hidden: Sequence[int] = (256, 128),
        bottom: Sequence[int] = (64,),
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.fields = FieldSum()
        self.bottom = tower(inputs.dense, [*bottom, dim], inputs.normalise) if inputs.dense else None
        vectors = len(inputs.fields) + (1 if inputs.dense else 0)
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        self.top = tower(pairs.shape[1] + (dim if inputs.dense else 0), hidden, inputs.normalise)
        self.out = nn.Linear(hidden[-1], 1)
        self._parts = (Part("embedding", dim, std),)

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.fields(rows["embedding"])
        extra: list[Tensor] = []
        if self.bottom is not None:
            bottom = self.bottom(dense)
            extra = [bottom]
            vectors = torch.cat([bottom.to(vectors.dtype).unsqueeze(1), vectors], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
        pairs = self.get_buffer("pairs")
        top = self.top(torch.cat([*extra, products.index_select(1, pairs)], dim=1))
        logit: Tensor = self.out(top).squeeze(1)
        return logit
