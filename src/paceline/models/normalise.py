"""Local batch normalisation: statistics that belong to a worker.

Source: "data normalisation" of Liu and Zhao, AAAI 2021, which is local batch normalisation, its Algorithm 1. The body
of that is not known to us: this is our reconstruction (our note on staleness, section 3.2). weight and bias are
ordinary parameters; mean and var are updated from the worker's own batches only, never pushed, never pulled, and pooled
for export.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class LocalBatchNorm(nn.Module):
    """torch's BatchNorm1d (momentum 0.1, unbiased running variance) in float32, [B, features] -> [B, features].

    Source: local batch normalisation, AAAI 2021 Algorithm 1, our reconstruction. moving: normalise with the worker's
    own running statistics in training, too, instead of the batch's. A training batch of one row has no variance: the
    running statistics serve it and stay as they are.
    """

    statistics: ClassVar[tuple[str, str]] = ("mean", "var")
    mean: Tensor
    var: Tensor

    def __init__(self, features: int, moving: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.moving, self.momentum, self.eps = moving, momentum, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x in x's type; float32 inside, also under autocast."""
        if not x.numel():
            return x  # a model without dense inputs; torch refuses to normalise nothing
        wide = x.float()
        fresh = self.training and x.shape[0] > 1
        if fresh:
            with torch.no_grad():  # in place, by operations that can be mapped over many workers at once
                self.mean.mul_(1 - self.momentum).add_(wide.mean(0), alpha=self.momentum)
                self.var.mul_(1 - self.momentum).add_(wide.var(0), alpha=self.momentum)
        of_batch = fresh and not self.moving
        # Copies where the running statistics are read: backward needs their values, and the next layer's update changes
        # the one vector that holds all of them.
        mean, var = (None, None) if of_batch else (self.mean.clone(), self.var.clone())
        out: Any = nn.functional.batch_norm(wide, mean, var, self.weight, self.bias, of_batch, 0.0, self.eps)
        normalised: Tensor = out.to(x.dtype)
        return normalised


def flatten_statistics(module: nn.Module) -> Tensor:
    """Lay the module's running statistics out in one flat float32 vector [S], of which they become views.

    The first half is all means, the second all variances, both in the order of the module's layers. S may be 0.
    """
    norms = [m for m in module.modules() if isinstance(m, LocalBatchNorm)]
    buffers = [getattr(norm, name) for name in LocalBatchNorm.statistics for norm in norms]
    flat = torch.cat([b.detach().reshape(-1) for b in buffers]) if buffers else torch.zeros(0)
    start = 0
    for name in LocalBatchNorm.statistics:
        for norm in norms:
            size = getattr(norm, name).numel()
            setattr(norm, name, flat[start : start + size])
            start += size
    return flat


def pool(statistics: Tensor) -> Tensor:
    """The export, float32 [S], of workers' statistics [workers, S] (half means, half variances): second moments are
    pooled, so that differing means of workers are not lost."""
    mean, var = statistics.double().chunk(2, dim=1)
    pooled = mean.mean(0)
    spread = (var + mean.square()).mean(0) - pooled.square()
    return torch.cat([pooled, spread.clamp_min(0)]).float()
