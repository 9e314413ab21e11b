"""A model of one's own: a field-weighted FM in 30 lines. `model: {name: my_model:FieldWeightedFM, dim: 8}`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paceline import Inputs, LinearTerm, Model, Part


class FieldWeightedFM(Model):
    """FwFM (Pan et al., WWW 2018): each pair of fields has a weight of its own, r_ij <v_i, v_j>."""

    def __init__(self, inputs: Inputs, dim: int = 8) -> None:
        super().__init__()
        fields = len(inputs.fields)
        self.linear = LinearTerm()
        self.pair = nn.Parameter(torch.ones(fields, fields))
        self.dense = nn.Linear(inputs.dense, 1, bias=False) if inputs.dense else None
        self._parts = (Part("linear", 1, std=0.0), Part("embedding", dim, std=0.01))

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        v = rows["embedding"]
        products = torch.bmm(v, v.transpose(1, 2))
        logit = self.linear(rows["linear"]) + (products * self.pair).triu(1).sum(dim=(1, 2))
        return logit if self.dense is None else logit + self.dense(dense).squeeze(1)
