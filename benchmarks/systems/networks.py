"""The models as a PyTorch user writes them, on looked-up rows: what plain PyTorch, FBGEMM and TorchRec train.

rows float32 [B, FIELDS, width]: the embedding's DIM numbers first, then the linear term's one where the model has it.
"""

from __future__ import annotations

import torch
from benchmarks.systems.worker import BOTTOM, DIM, FIELDS, HIDDEN, NUMBERS
from torch import Tensor, nn

WIDTH = {"lr": 1, "fm": DIM + 1, "deepfm": DIM + 1, "dlrm": DIM, "rows": DIM}


def tower(width: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """Linear + ReLU layers."""
    layers: list[nn.Module] = []
    for out in hidden:
        layers += [nn.Linear(width, out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers)


class SumOfTerms(nn.Module):
    """LR, FM and DeepFM: bias + linear terms [+ factor term] [+ MLP on rows and numbers] -> [B]."""

    def __init__(self, factor: bool, deep: bool) -> None:
        super().__init__()
        self.numbers = nn.Linear(NUMBERS, 1)
        self.factor = factor
        self.mlp = nn.Sequential(tower(FIELDS * DIM + NUMBERS, HIDDEN), nn.Linear(HIDDEN[-1], 1)) if deep else None

    def forward(self, rows: Tensor, numbers: Tensor) -> Tensor:
        logit = rows[:, :, -1].sum(1) + self.numbers(numbers).squeeze(1)
        if self.factor:
            v = rows[:, :, :DIM]
            logit = logit + 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
        if self.mlp is not None:
            inputs = torch.cat([rows[:, :, :DIM].flatten(1), numbers], 1)
            logit = logit + self.mlp(inputs).squeeze(1)
        return logit


class DLRM(nn.Module):
    """Naumov et al., arXiv 1906.00091: dot products of all pairs of vectors -> [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = tower(NUMBERS, (*BOTTOM, DIM))
        pairs = torch.triu_indices(FIELDS + 1, FIELDS + 1, offset=1)
        self.register_buffer("pairs", pairs[0] * (FIELDS + 1) + pairs[1])
        self.top = nn.Sequential(tower(DIM + pairs.shape[1], HIDDEN), nn.Linear(HIDDEN[-1], 1))

    def forward(self, rows: Tensor, numbers: Tensor) -> Tensor:
        bottom = self.bottom(numbers)
        vectors = torch.cat([bottom.unsqueeze(1).to(rows.dtype), rows], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        return self.top(torch.cat([bottom, products.to(bottom.dtype)], 1)).squeeze(1)


def network(model: str) -> nn.Module:
    """The dense part of a model by name."""
    return DLRM() if model == "dlrm" else SumOfTerms(factor=model in ("fm", "deepfm"), deep=model == "deepfm")


def loss_of(net: nn.Module, rows: Tensor, numbers: Tensor, labels: Tensor, bf16: bool) -> Tensor:
    """The mean log loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        logits = net(rows, numbers)
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels)
