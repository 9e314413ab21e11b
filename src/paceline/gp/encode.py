"""Names to numbers: what a model knows is what its training rows have."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paceline.gp.ratings import Ratings

UNSEEN = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """Encoded rows. user, item: [n]; contexts: [n, C]; UNSEEN for what no training row has; reals: [n, R]
    standardised by the training rows, NaN where missing; rating: [n] fp64.
    """

    user: Tensor
    item: Tensor
    contexts: Tensor
    reals: Tensor
    rating: Tensor

    def __len__(self) -> int:
        return len(self.rating)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The users, items and context values of the training rows, in sorted order; and each real context's mean and
    deviation.
    """

    users: list[str]
    items: list[str]
    contexts: dict[str, list[str]]
    reals: dict[str, tuple[float, float]]

    @classmethod
    def of(cls, rows: Ratings) -> Vocabulary:
        """The vocabulary of training rows."""
        contexts: dict[str, list[str]] = {}
        reals: dict[str, tuple[float, float]] = {}
        for name, column in rows.contexts.items():
            if column.dtype == object:
                contexts[name] = sorted(set(column))
            else:
                seen = column[np.isfinite(column)]
                spread = float(seen.std()) if len(seen) else 0.0
                reals[name] = (float(seen.mean()) if len(seen) else 0.0, spread or 1.0)
        return cls(sorted(set(rows.users)), sorted(set(rows.items)), contexts, reals)

    def encode(self, rows: Ratings) -> Rows:
        """The rows as tensors."""
        contexts = [_codes(known, rows.contexts[name]) for name, known in self.contexts.items()]
        reals = [torch.from_numpy((rows.contexts[name] - mean) / spread) for name, (mean, spread) in self.reals.items()]
        empty = torch.empty(len(rows), 0)
        return Rows(
            _codes(self.users, rows.users),
            _codes(self.items, rows.items),
            torch.stack(contexts, 1) if contexts else empty.long(),
            torch.stack(reals, 1) if reals else empty.double(),
            torch.from_numpy(rows.ratings.astype(np.float64)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Vocabulary:
        reals = {name: (mean, spread) for name, (mean, spread) in value["reals"].items()}
        return cls(value["users"], value["items"], value["contexts"], reals)


def _codes(known: list[str], texts: Any) -> Tensor:
    place = {name: number for number, name in enumerate(known)}
    return torch.tensor([place.get(text, UNSEEN) for text in texts], dtype=torch.long)
