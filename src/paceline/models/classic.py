"""LR, FM, Wide&Deep and DeepFM: sums of the linear, factor and deep terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from paceline.models.base import DeepTerm, Inputs, Model, Part
from paceline.models.operators import FactorTerm, LinearTerm


@dataclass(frozen=True, slots=True)
class Terms:
    """Which terms a model adds up."""

    factor: bool
    deep: bool


class SumOfTerms(Model):
    """logit = bias + sum of w_id + w^T dense [+ factor term] [+ deep term]"""

    terms: Terms

    def __init__(self, inputs: Inputs, dim: int, hidden: Sequence[int], std: float) -> None:
        super().__init__()
        self.linear = LinearTerm()
        self.dense = nn.Linear(inputs.dense, 1, bias=False) if inputs.dense else None
        self.factor = FactorTerm() if self.terms.factor else None
        self.deep = DeepTerm(inputs, dim, hidden) if self.terms.deep else None
        self._parts: tuple[Part, ...] = (Part("linear", 1, 0.0),)
        if self.terms.factor or self.terms.deep:
            self._parts += (Part("embedding", dim, std),)

    def parts(self) -> tuple[Part, ...]:
        return self._parts

    def forward(self, rows: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        logit: Tensor = self.linear(rows["linear"])
        if self.dense is not None:
            logit = logit + self.dense(dense).squeeze(1)
        if self.factor is not None:
            logit = logit + self.factor(rows["embedding"])
        if self.deep is not None:
            logit = logit + self.deep(rows["embedding"], dense)
        return logit


class LR(SumOfTerms):
    """Logistic regression."""

    terms = Terms(factor=False, deep=False)

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs, dim=0, hidden=[], std=0.0)


class FM(SumOfTerms):
    """Factorisation machine (Rendle, ICDM 2010)."""

    terms = Terms(factor=True, deep=False)

    def __init__(self, inputs: Inputs, dim: int = 16, std: float = 0.01) -> None:
        super().__init__(inputs, dim, hidden=[], std=std)


class WideDeep(SumOfTerms):
    """Wide & Deep (Cheng et al., DLRS 2016): the wide part is the linear term of all ids."""

    terms = Terms(factor=False, deep=True)

    def __init__(self, inputs: Inputs, dim: int = 16, hidden: Sequence[int] = (256, 128), std: float = 0.01) -> None:
        super().__init__(inputs, dim, hidden, std)


class DeepFM(SumOfTerms):
    """DeepFM (Guo et al., IJCAI 2017, eq. 1): FM and MLP on the same rows."""

    terms = Terms(factor=True, deep=True)

    def __init__(self, inputs: Inputs, dim: int = 16, hidden: Sequence[int] = (256, 128), std: float = 0.01) -> None:
        super().__init__(inputs, dim, hidden, std)
