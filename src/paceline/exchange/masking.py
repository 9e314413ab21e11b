"""Of the partial sums of a sample only the largest: what a shard sends of them, forward and back.

Source: DCT-MP (Gupta et al., KDD 2021, arXiv 2010.08899), reconstructed; our note on DCT, section 3.2, thresholds by
row, one for each operator. What is not sent of a sample is zero for it on the way there and has no gradient on the way
back; so both sides know the mask from what was sent, and gradients travel as values alone. There is no error feedback:
a sum belongs to a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from paceline.params.feedback import kept_entries


def largest(values: Tensor, present: Tensor, segments: Sequence[int], share: float) -> Mask:
    """Which entries of float32 [B, K] are sent: in each row, of each of the segments that K consists of, those that are
    farthest from zero, `share` of them rounded up. present: bool [B, K], sums of anything at all: others never are.

    A segment is what one operator sums. Numbers of different operators do not compare: a linear term is small and
    weighs much, so it is not to lose against the inputs of a hidden layer. A sum that is zero may be sent: rows may
    start at zero, and learn only from what is sent of them.
    """
    found = []
    size = torch.where(present, values.abs(), -1.0)
    for piece in torch.split(size, list(segments), dim=1):
        chosen = torch.topk(piece, kept_entries(share, piece.shape[1]), dim=1, sorted=False).indices
        found.append(torch.zeros(piece.shape, dtype=torch.bool).scatter_(1, chosen, True))
    return Mask(torch.cat(found, dim=1) & present)


def kept_numbers(share: float, segments: Sequence[int]) -> int | None:
    """m: how many of a sample's K numbers are sent if that share of each segment is to be. None if it is no shorter to
    send values there, a bit for each number, and values back, than all of them both ways."""
    if not segments or share >= 1:
        return None
    numbers, kept = sum(segments), sum(kept_entries(share, size) for size in segments)
    return kept if 2 * 4 * kept + min(numbers / 8, 4 * kept) < 2 * 4 * numbers else None


@final
@dataclass(frozen=True, slots=True)
class Mask:
    """Which of B x K numbers are sent, bool [B, K]."""

    chosen: Tensor

    @property
    def count(self) -> int:
        """How many were sent."""
        return int(self.chosen.count_nonzero())

    def values(self, gradient: Tensor) -> Tensor:
        """Of a gradient [B, K], what goes back: flat, [count]."""
        return gradient.reshape(self.chosen.shape)[self.chosen]

    def spread(self, values: Tensor) -> Tensor:
        """The gradient [B, K] of which `values` came back: zero elsewhere."""
        found = torch.zeros(self.chosen.shape)
        found[self.chosen] = values
        return found
