"""What Gaussian processes are compared with: a factorization machine with the same contexts, and users' averages.

Source: Rendle, "Factorization Machines", ICDM 2010 (second order, squared loss, L2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from paceline.gp.config import ModelConfig
from paceline.gp.encode import Rows, Vocabulary
from paceline.gp.models import Layout, Model, average_biases, entities, leaves, look_up


class Fm(Model):
    """w_0 + sum of biases + sum over pairs of <v_i, v_j>, over user, item, categorical contexts (a value's own v) and
    real contexts (value times v). The objective is half the squared errors plus l2/2 |biases|^2 + l2_factors/2 |v|^2;
    w_0 is free.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, rows: Rows, seed: int) -> None:
        self.config, self.rows = config, rows
        self.layout = Layout.of(vocabulary, config.dim, config.dim)
        draw = torch.Generator().manual_seed(seed)
        found = average_biases(rows, self.layout, len(vocabulary.users))
        sizes = {"user": len(vocabulary.users), **self.layout.tables, "reals": len(vocabulary.reals)}
        for name, size in sizes.items():
            found[f"v.{name}"] = config.start * torch.randn(size, config.dim, generator=draw, dtype=torch.float64)
        self.parameters = leaves(found)

    def batches(self, users: int | None, order: torch.Generator | None) -> list[Tensor]:
        number = torch.arange(len(self.rows))
        if users is None:
            return [number]
        chosen = torch.randperm(int(self.rows.user.max()) + 1, generator=order)
        return [number[torch.isin(self.rows.user, some)] for some in torch.split(chosen, users)]

    def loss(self, batch: Tensor) -> Tensor:
        rows, p = self.rows, self.parameters
        errors = rows.rating[batch] - self._score(rows, batch)
        share = len(batch) / len(rows)
        plain = torch.stack([v.square().sum() for n, v in p.items() if n.startswith(("bias.", "slope"))]).sum()
        factors = torch.stack([v.square().sum() for n, v in p.items() if n.startswith("v.")]).sum()
        return 0.5 * (errors.square().sum() + share * (self.config.l2 * plain + self.config.l2_factors * factors))

    def _score(self, rows: Rows, place: Tensor) -> Tensor:
        p, reals = self.parameters, rows.reals[place].nan_to_num(0.0)
        score = p["bias"] + reals @ p["slope"]
        total, squares = reals @ p["v.reals"], reals.square() @ p["v.reals"].square()
        for name, index in {"user": rows.user, **entities(rows, self.layout)}.items():
            score = score + look_up(p[f"bias.{name}"], index[place], 0.0)
            v = look_up(p[f"v.{name}"], index[place], 0.0)
            total, squares = total + v, squares + v.square()
        return score + 0.5 * (total.square() - squares).sum(-1)

    @torch.no_grad()
    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        mean = self._score(rows, torch.arange(len(rows)))
        return mean, torch.full_like(mean, float("nan"))


class UserMean(Model):
    """Each user's average; the global one for users without training rows."""

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, rows: Rows, seed: int) -> None:
        count = torch.bincount(rows.user, minlength=len(vocabulary.users))
        total = torch.bincount(rows.user, rows.rating, minlength=len(vocabulary.users))
        self.parameters = {"mean": total / count, "all": rows.rating.mean()}

    def batches(self, users: int | None, order: torch.Generator | None) -> list[Tensor]:
        return []

    def loss(self, batch: Tensor) -> Tensor:
        raise AssertionError("there are no batches: averages are the least squares already")

    def predict(self, rows: Rows) -> tuple[Tensor, Tensor]:
        mean = look_up(self.parameters["mean"], rows.user, self.parameters["all"])
        return mean, torch.full_like(mean, float("nan"))
