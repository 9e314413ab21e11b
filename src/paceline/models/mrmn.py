"""MRMN, the multi-relational memory network, and LRML, the single-relation model that it generalises.

MRMN is a RECONSTRUCTION. Zhou, Liu, Lian and Xie (IJCAI 2019, arXiv 1906.09882) say in public that an external memory
with attention gives a relation vector for each (user, item, type of feedback), that one model predicts all types, and
that a pairwise ranking loss has a margin for each type; the equations below are ours (docs/mrmn.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from paceline.models.base import Inputs
from paceline.models.ranking import MetricModel, squared_distances

Query = Literal["product", "additive", "linear"]
Relation = Literal["own", "positive"]
LEAST, MOST = 0.1, 2.0  # bounds of margins that are learned
_FLOOR = 0.001  # LRML's, under the root


class MemoryModel(MetricModel):
    """a = softmax over slots of <query, K_i>; r = sum over slots of a_i M_i; D from u + r - v.

    keys K and memory M are float32 [slots, dim].
    """

    def __init__(self, inputs: Inputs, dim: int, slots: int, std: float, relation: Relation) -> None:
        super().__init__(inputs, dim, std)
        if relation not in get_args(Relation):
            raise ValueError(f"relation {relation!r} must be one of {', '.join(get_args(Relation))}")
        self.relation = relation
        self.keys = nn.Parameter(torch.randn(slots, dim) * dim**-0.5)
        self.memory = nn.Parameter(torch.randn(slots, dim) * 0.1 * dim**-0.5)

    def query(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        """What is looked up, [B, n, dim], of user [B, 1, dim], items [B, n, dim], types [B]."""
        return user * items

    def attention(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        """[B, n, slots]: positive, and 1 in all."""
        return torch.softmax(self.query(user, items, types) @ self.keys.T, -1)

    def relations(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        """r of each pair, [B, n, dim]."""
        return self.attention(user, items, types) @ self.memory

    def distances(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        related = self.relations(user, items if self.relation == "own" else items[:, :1], types)
        return self.finish((user + related - items).square().sum(-1))

    def finish(self, squared: Tensor) -> Tensor:
        """The distance, out of its square."""
        return squared

    def rank(self, users: Mapping[str, Tensor], items: Mapping[str, Tensor], types: Tensor) -> Tensor:
        """With each item's own relation: || u - v ||^2 + 2 <r, u - v> + || r ||^2, where r is a sum of few slots."""
        u, v = users["vector"], items["vector"]
        a = torch.softmax(self._logits(u, v, types), 1)  # [n, slots, items]
        memory = self.slots(types)  # [n or 1, slots, dim]
        along = memory @ u.unsqueeze(2) - memory @ v.T  # <M_i, u - v>, [n, slots, items]
        gram = memory @ memory.transpose(1, 2)
        squared = squared_distances(u, v) + (a * (2 * along + gram @ a)).sum(1)
        return self.finish(squared.clamp_min(0.0))  # rounding of a difference of large numbers

    def slots(self, types: Tensor) -> Tensor:
        """The memory as each of the types sees it, [n, slots, dim], or [1, slots, dim] if they see the same."""
        return self.memory.unsqueeze(0)

    def _logits(self, u: Tensor, v: Tensor, types: Tensor) -> Tensor:
        return (u.unsqueeze(1) * self.keys) @ v.T  # [n, slots, items]


class LRML(MemoryModel):
    """Latent relational metric learning (Tay et al., WWW 2018; as its public code has it):

    s = u * v; a = softmax(K s); r = M^T a; distance = sqrt(||u + r - v||^2 + 0.001); the negative is compared with the
    relation of the positive. All types are one to it.
    """

    def __init__(self, inputs: Inputs, dim: int = 64, slots: int = 16, std: float = 0.05, margin: float = 0.2) -> None:
        super().__init__(inputs, dim, slots, std, "positive")
        self._margin = margin

    def margin(self, types: Tensor) -> Tensor:
        return torch.full_like(types, self._margin, dtype=torch.float32)

    def finish(self, squared: Tensor) -> Tensor:
        return (squared + _FLOOR).sqrt()


class MRMN(MemoryModel):
    """Multi-relational memory network: a reconstruction of Zhou et al., IJCAI 2019 (see the module).

        z = u * v * t;  a = softmax over slots of <z, K_i>;  r = sum of a_i M_i;  D_t(u, v) = ||u + r - v||^2
        loss = mean of max(0, margin_t + D_t(u, v) - D_t(u, v')),  v' without feedback t of u

    t is the vector of the feedback type. query: product (above), additive (u * v + t) or linear (W [u; v; t] + c).
    relation: own (the negative has its own r) or positive (it has that of the interaction, as in LRML). gated: slots
    are M_i * t. margins: for each type, the weakest first, or one for all; none: evenly from 0.5 to 1. learn_margins:
    within [0.1, 2]; what they are is in every evaluation. weights: of each type in the loss, or none: all 1.
    """

    def __init__(
        self,
        inputs: Inputs,
        dim: int = 64,
        slots: int = 16,
        std: float = 0.05,
        query: Query = "product",
        relation: Relation = "own",
        gated: bool = False,
        margins: Sequence[float] = (),
        learn_margins: bool = False,
        weights: Sequence[float] = (),
    ) -> None:
        super().__init__(inputs, dim, slots, std, relation)
        if query not in get_args(Query):
            raise ValueError(f"query {query!r} must be one of {', '.join(get_args(Query))}")
        count = len(inputs.types)
        self.kind, self.gated, self.learns_margins = query, gated, learn_margins
        self.vectors = nn.Parameter(1 + 0.01 * torch.randn(count, dim))
        self.mix = nn.Linear(3 * dim, dim) if query == "linear" else None
        chosen = torch.tensor(_for_types("margins", margins or torch.linspace(1, 0.5, count).flip(0).tolist(), count))
        self._weights = torch.tensor(_for_types("weights", weights or [1.0], count))
        if learn_margins:
            if not ((chosen > LEAST) & (chosen < MOST)).all():
                raise ValueError(f"margins {chosen.tolist()}: those that are learned begin between {LEAST} and {MOST}")
            self.raw_margins = nn.Parameter(torch.logit((chosen - LEAST) / (MOST - LEAST)))
        else:
            self._margins = chosen

    def query(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        t = self._vector(types).unsqueeze(1)
        match self.kind:
            case "product":
                return user * items * t
            case "additive":
                return user * items + t
            case "linear":
                assert self.mix is not None
                mixed: Tensor = self.mix(torch.cat([user.expand_as(items), items, t.expand_as(items)], -1))
                return mixed

    def relations(self, user: Tensor, items: Tensor, types: Tensor) -> Tensor:
        related = super().relations(user, items, types)
        return related * self._vector(types).unsqueeze(1) if self.gated else related

    def margins(self) -> Tensor:
        """Of each type, [types]."""
        if self.learns_margins:
            return LEAST + (MOST - LEAST) * torch.sigmoid(self.raw_margins)
        return self._margins

    def margin(self, types: Tensor) -> Tensor:
        return nn.functional.embedding(types, self.margins().unsqueeze(1)).squeeze(1)

    def weight(self, types: Tensor) -> Tensor:
        return self._weights[types]

    def slots(self, types: Tensor) -> Tensor:
        return self.memory * self._vector(types).unsqueeze(1) if self.gated else self.memory.unsqueeze(0)

    def told(self) -> dict[str, Any]:
        margins = self.margins().detach().tolist()
        return {"margins": {name: round(value, 6) for name, value in zip(self.types, margins, strict=True)}}

    def _vector(self, types: Tensor) -> Tensor:
        return nn.functional.embedding(types, self.vectors)

    def _logits(self, u: Tensor, v: Tensor, types: Tensor) -> Tensor:
        t = self._vector(types)
        if self.mix is None:
            alone = super()._logits(u * t if self.kind == "product" else u, v, types)
            return alone if self.kind == "product" else alone + (t @ self.keys.T).unsqueeze(2)
        d = self.dim
        of_user, of_item, of_type = (self.mix.weight[:, i : i + d] for i in (0, d, 2 * d))
        fixed = (u @ of_user.T + t @ of_type.T + self.mix.bias) @ self.keys.T
        logits: Tensor = fixed.unsqueeze(2) + (self.keys @ of_item @ v.T).unsqueeze(0)
        return logits


def _for_types(key: str, values: Sequence[float], count: int) -> list[float]:
    """A number for each type. Raises ValueError if there are too many or too few."""
    if len(values) not in (1, count):
        raise ValueError(f"{key} {list(values)} must be one number, or {count}, one for each type")
    return list(values) * (count if len(values) == 1 else 1)
