"""Users of about the same number of rows side by side, padded to the same size, so that linear algebra is batched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BUDGET = 4_000_000  # numbers in the largest tensor of a block: 32 MB in fp64


@dataclass(frozen=True, slots=True)
class Block:
    """users: their numbers [U]; rows: the numbers of their rows [U, N], 0 at padding; mask: which are real [U, N]."""

    users: Tensor
    rows: Tensor
    mask: Tensor

    def part(self, start: int, end: int) -> Block:
        """Its users from `start` to `end`, without columns that are padding for all of them."""
        mask = self.mask[start:end]
        width = int(mask.sum(1).max())
        return Block(self.users[start:end], self.rows[start:end, :width], mask[:, :width])


def blocks(user: Tensor, pairs: int = 1) -> list[Block]:
    """Blocks of all users among `user` [n] (a number for each row; negative ones are left out).

    A block's users have a number of rows between two powers of two, so at most half of it is padding; pairs: numbers
    that a row takes in the largest tensor, so that none is above BUDGET unless a single user is.
    """
    order = torch.argsort(user, stable=True)
    order = order[user[order] >= 0]
    names, counts = torch.unique_consecutive(user[order], return_counts=True)
    starts = torch.cumsum(counts, 0) - counts
    made = []
    sizes = 2 ** torch.ceil(torch.log2(counts.double())).long()
    for size in torch.unique(sizes).tolist():
        chosen = torch.nonzero(sizes == size)[:, 0]
        for some in torch.split(chosen, max(1, BUDGET // (size * pairs))):
            width = int(counts[some].max())
            column = torch.arange(width)
            mask = column < counts[some, None]
            place = torch.where(mask, starts[some, None] + column, 0)
            made.append(Block(names[some], torch.where(mask, order[place], 0), mask))
    return made


def groups(user: Tensor, known: Block) -> Block:
    """The rows of `user` [n] that belong to the users of a block, in its order (users without any: padding only)."""
    own = [torch.nonzero(user == name)[:, 0] for name in known.users]
    width = max(1, max((len(rows) for rows in own), default=0))
    rows, mask = torch.zeros(len(own), width, dtype=torch.long), torch.zeros(len(own), width, dtype=torch.bool)
    for number, found in enumerate(own):
        rows[number, : len(found)], mask[number, : len(found)] = found, True
    return Block(known.users, rows, mask)
