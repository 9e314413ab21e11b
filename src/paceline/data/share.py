"""Which rows of the log belong to one of several groups: disjoint, together all of them, the same after any resume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.batch import Bag, Ints
from paceline.data.encode import Block


@dataclass(frozen=True, slots=True)
class Share:
    """Of `groups` groups the one number `group`; seed: other seeds share otherwise."""

    groups: int
    group: int
    seed: int

    def mine(self, day: int, file: int, rows: Ints) -> npt.NDArray[np.bool_]:
        """Whether each row (its place in the file) belongs to the group: by a hash of where it stands in the log."""
        place = _mix(np.array([self.seed], np.uint64) ^ _mix(np.array([day], np.uint64)))
        place = _mix(place ^ np.uint64(file))
        return np.asarray(_mix(place ^ rows.astype(np.uint64)) % np.uint64(self.groups) == np.uint64(self.group))

    def of(self, block: Block, day: int) -> Block:
        """The block with the group's good rows only; bad ones are everybody's."""
        kept = np.flatnonzero(self.mine(day, block.file, block.rows))
        groups = None if block.groups is None else block.groups[kept]
        return Block(
            block.file, block.rows[kept], block.labels[kept], block.ids[kept], tuple(_bag(b, kept) for b in block.bags),
            block.numbers[kept], groups, block.bad, block.stop,
        )  # fmt: skip


def _bag(bag: Bag, kept: npt.NDArray[np.intp]) -> Bag:
    lengths = np.diff(bag.offsets)[kept]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    taken = np.repeat(bag.offsets[:-1][kept] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return Bag(bag.ids[taken], offsets, bag.weights[taken])


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
