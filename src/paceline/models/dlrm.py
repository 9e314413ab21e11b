"""DLRM (Naumov et al., arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from paceline.kernels import pairs as kernels
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
        top = self.top(torch.cat([*extra, self.products(vectors)], dim=1))
        logit: Tensor = self.out(top).squeeze(1)
        return logit

    def products(self, vectors: Tensor) -> Tensor:
        """Dot products of all pairs: [B, V, dim] -> [B, V (V - 1) / 2]."""
        half = torch.is_autocast_enabled(vectors.device.type)
        if vectors.dtype == torch.float32 and vectors.device.type == "cpu" and not half:
            out: Tensor = _PairProducts.apply(vectors, self.get_buffer("pairs"))  # type: ignore[no-untyped-call]
            return out
        return _pair_products(vectors, self.get_buffer("pairs"))


def _pair_products(vectors: Tensor, pairs: Tensor) -> Tensor:
    """[..., V, dim] -> [..., V (V - 1) / 2]; pairs: their places in a flat V x V matrix."""
    return torch.matmul(vectors, vectors.transpose(-1, -2)).flatten(-2).index_select(-1, pairs)


class _PairProducts(torch.autograd.Function):
    """The same on the CPU. A pair's gradient g goes to both of its vectors: dV = S V with S symmetric, S_ij = g_ij, so
    one product of matrices is the way back, where autograd takes two and adds up every place of the matrix."""

    @staticmethod
    def forward(vectors: Tensor, pairs: Tensor) -> Tensor:
        square = torch.bmm(vectors, vectors.transpose(1, 2))
        out = vectors.new_empty(vectors.shape[0], pairs.shape[0])
        kernels.above(square.numpy(), out.numpy())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (vectors,) = ctx.saved_tensors
        square = vectors.new_empty(vectors.shape[0], vectors.shape[1], vectors.shape[1])
        kernels.mirrored(gradient.detach().contiguous().numpy(), square.numpy())
        return torch.bmm(square, vectors), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], vectors: Tensor, pairs: Tensor) -> tuple[Tensor, int]:
        assert in_dims[0] is not None
        assert in_dims[1] is None
        return _pair_products(vectors.movedim(in_dims[0], 0), pairs), 0
