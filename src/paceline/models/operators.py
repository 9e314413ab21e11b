"""Sparse operators: one definition, two places to run.

An operator is a pair: `partial(rows on this shard) -> additive tensor` and `finish(sum of partials) -> output`. When
rows are pulled to the worker, it runs both; under substitution (DES, Rong et al., arXiv 1909.04823) each shard runs
`partial` on its own rows and only the partial sums travel. `partial` is therefore additive over shards: where a shard
holds no row of a (sample, field), its input is zero and must add nothing.

Shapes: a part of the rows comes as [B, F, width]: B samples, F fields, bags pooled already. Under substitution a model
is given `Totals` in its place, out of which every operator takes the sum that is its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from paceline.kernels import factors as kernels


@final
class Totals:
    """What stands for rows[part] under substitution: for each operator that reads the part, the sum over all shards of
    its partials. It is no tensor: a model that reads the part in other ways than by operators needs the rows."""

    def __init__(self, take: Callable[[SparseOperator], Tensor]) -> None:
        self.take = take


class SparseOperator(nn.Module, ABC):
    """partial: rows [B, F, width] -> [B, ...], additive over shards; finish: sum of partials -> output."""

    @abstractmethod
    def partial(self, rows: Tensor) -> Tensor:
        """What one shard contributes; zero rows contribute nothing.

        A number that the output only has added to it (a linear term's sum) should be the last of a sample's: those of
        several operators travel as one where the model just adds them up.
        """

    @abstractmethod
    def finish(self, total: Tensor) -> Tensor:
        """The output, out of the sum of all shards' partials."""

    def whole(self, rows: Tensor) -> Tensor:
        """Both steps in one place; an operator may have a shorter way to the same numbers, up to rounding."""
        return self.finish(self.partial(rows))

    def forward(self, rows: Tensor | Totals) -> Tensor:
        """The output, from the rows of all shards or from the sum of their partials."""
        if isinstance(rows, Totals):
            return self.finish(rows.take(self))
        return self.whole(rows)


class LinearTerm(SparseOperator):
    """sum over fields of w_id, plus a bias: rows [B, F, 1] -> [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def partial(self, rows: Tensor) -> Tensor:
        return rows.sum(dim=(1, 2))

    def finish(self, total: Tensor) -> Tensor:
        return total + self.bias


class FactorTerm(SparseOperator):
    """Second-order term of a factorisation machine (Rendle, ICDM 2010, eq. 1 in its linear-time form).

    rows [B, F, dim] -> [B]: 1/2 * sum_j ((sum_f v_fj)^2 - sum_f v_fj^2)

    partial [B, dim + 1]: S = sum_f v_f, and -q/2 with q = sum_f <v_f, v_f>; finish: <S, S>/2 - q/2. A field's rows must
    be whole for it, on one shard: a bag's are pooled before q squares them.
    """

    def partial(self, rows: Tensor) -> Tensor:
        return torch.cat([rows.sum(dim=1), -0.5 * rows.square().sum(dim=(1, 2)).unsqueeze(1)], dim=1)

    def finish(self, total: Tensor) -> Tensor:
        return 0.5 * total[:, :-1].square().sum(dim=1) + total[:, -1]

    def whole(self, rows: Tensor) -> Tensor:
        """Subtracts within each dimension, where fewer digits cancel."""
        if rows.dtype == torch.float32 and rows.device.type == "cpu":
            out: Tensor = _Factor.apply(rows)[0]  # type: ignore[no-untyped-call]
            return out
        return _factor(rows)


def _factor(rows: Tensor) -> Tensor:
    """[..., F, dim] -> [...]"""
    sums, squares = torch.cat([rows.sum(dim=-2), rows.square().sum(dim=-2)], dim=-1).chunk(2, dim=-1)
    return 0.5 * (sums.square() - squares).sum(dim=-1)


class _Factor(torch.autograd.Function):
    """The same on the CPU by kernels that go over the rows once, there and back. Mapped over several models it is the
    tensors' own arithmetic."""

    @staticmethod
    def forward(rows: Tensor) -> tuple[Tensor, Tensor]:
        sums, out = rows.new_empty(rows.shape[0], rows.shape[2]), rows.new_empty(rows.shape[0])
        squares = np.empty(rows.shape[2], np.float32)
        kernels.factor(rows.detach().contiguous().numpy(), sums.numpy(), squares, out.numpy())
        return out, sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Tensor:
        rows, sums = ctx.saved_tensors
        plain = rows.detach().contiguous()
        out = torch.empty_like(plain)
        kernels.factor_back(gradient.detach().contiguous().numpy(), plain.numpy(), sums.numpy(), out.numpy())
        return out

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], rows: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
        (dim,) = in_dims
        assert dim is not None
        rows = rows.movedim(dim, 0)
        return (_factor(rows), rows.detach().sum(dim=-2)), (0, 0)


class FieldSum(SparseOperator):
    """The pooled rows of every field, side by side: rows [B, F, dim] -> [B, F, dim].

    Additive because each shard fills in the (sample, field) sums of its own rows and leaves the others zero.
    """

    def partial(self, rows: Tensor) -> Tensor:
        return rows

    def finish(self, total: Tensor) -> Tensor:
        return total


class FirstProjection(SparseOperator):
    """First dense layer on the concatenated rows, before its non-linearity: rows [B, F, dim] -> [B, out].

    x W^T + b is additive in x, so each shard projects what it holds; the bias enters once, in `finish`.
    """

    def __init__(self, fields: int, dim: int, out: int) -> None:
        super().__init__()
        layer = nn.Linear(fields * dim, out)
        self.weight, self.bias = layer.weight, layer.bias

    def partial(self, rows: Tensor) -> Tensor:
        return nn.functional.linear(rows.flatten(1), self.weight)

    def finish(self, total: Tensor) -> Tensor:
        return total + self.bias

    def whole(self, rows: Tensor) -> Tensor:
        """In one place the bias rides along with the product."""
        return nn.functional.linear(rows.flatten(1), self.weight, self.bias)
