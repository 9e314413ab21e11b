"""A pace is a value: one point of a few fields. Every published mode is such a point.

    field     question it answers
    round     is there a barrier: how many gradients may be computed on one version of the parameters?
    spread    how many steps may the fastest worker lead the slowest?
    buffer    how many gradients make one update?
    limit     beyond which staleness is a gradient left out?
    tokens    is staleness counted from the data order or from the version that was pulled?
    holds     does a gradient that is too stale still occupy its place in the buffer?
    weight    what does staleness take off a gradient that is applied?

Source: GBA (Su et al., NeurIPS 2022), sections 3.3 and 3.6 of our note; SyncReplicas (Chen et al., 2016) for backup
workers; staleness weights: Liu and Zhao, AAAI 2021; the "ours" decisions are argued in docs/pace.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from paceline.errors import PaceError
from paceline.pace.weights import Weight

Tokens = Literal["data", "version"]


@dataclass(frozen=True, slots=True)
class Pace:
    """When gradients are computed and applied. All counts are gradients (one gradient = one local batch).

    name: what the metrics call it.
    buffer: gradients per update, >= 1.
    round: gradients granted per version, or None for no barrier. >= buffer, or the job would freeze.
    spread: the most steps that a worker may lead the slowest live worker by when it starts a step, or None.
    limit: the largest staleness (in updates) that is applied, or None.
    tokens: "data": the update in which sync would have consumed the batch; "version": the version that was granted.
    holds: True: a gradient left out still counts towards the buffer (GBA); False: it is dropped as it arrives.
    weight: what a gradient is multiplied by for its age, or None. Counts updates from the version that was granted,
        whatever the tokens count from.
    """

    name: str
    buffer: int
    round: int | None = None
    spread: int | None = None
    limit: int | None = None
    tokens: Tokens = "version"
    holds: bool = False
    weight: Weight | None = None

    def __post_init__(self) -> None:
        def refuse(field: str, value: object, need: str) -> None:
            raise PaceError(f"pace {self.name!r}: {field} is {value!r}, but must be {need}")

        if self.buffer < 1:
            refuse("buffer", self.buffer, "at least 1")
        if self.round is not None and self.round < self.buffer:
            refuse("round", self.round, f"None or at least the buffer ({self.buffer}), or no update would ever come")
        if self.spread is not None and self.spread < 0:
            refuse("spread", self.spread, "None or at least 0")
        if self.limit is not None and self.limit < 0:
            refuse("limit", self.limit, "None or at least 0")
        if self.tokens not in ("data", "version"):
            refuse("tokens", self.tokens, "'data' or 'version'")

    @property
    def collective(self) -> bool:
        """Every update needs every gradient of its round and none is ever left out: collectives may carry it."""
        return self.round is not None and self.round == self.buffer

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values; `Pace.from_json` is the way back."""
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Pace:
        """The pace that `to_json` told of."""
        weight = value.get("weight")
        return Pace(**{**value, "weight": None if weight is None else Weight(**weight)})


def sync(gradients: int) -> Pace:
    """A barrier after every global batch of `gradients` local batches; nothing is ever stale."""
    return Pace("sync", buffer=gradients, round=gradients, limit=0)


def asynchronous(weight: Weight | None = None) -> Pace:
    """Every gradient is an update of its own, however stale (the effective batch is the local batch)."""
    return Pace("async", buffer=1, weight=weight)


def bounded_staleness(bound: int, weight: Weight | None = None) -> Pace:
    """Asynchronous, but nobody starts a step more than `bound` steps ahead of the slowest (Hop-BS)."""
    return Pace("bounded_staleness", buffer=1, spread=bound, weight=weight)


def backup_workers(gradients: int, backup: int) -> Pace:
    """Rounds of `gradients + backup` grants: the first `gradients` make the update, the rest are dropped (Hop-BW)."""
    return Pace("backup_workers", buffer=gradients, round=gradients + backup, limit=0)


def bulk_synchronous(gradients: int, weight: Weight | None = None) -> Pace:
    """A fixed number of gradients is aggregated, whoever sends them and however stale (the paper's BSP)."""
    return Pace("bulk_synchronous", buffer=gradients, weight=weight)


def damped(gradients: int, weight: Weight | None = None) -> Pace:
    """For thousands of workers (ours, evidence/three_thousand.py): aggregates like `bulk_synchronous`; rows and dense
    part go a share of the optimizer's step that falls with the updates they missed (default: power law, k = 4)."""
    return Pace("damped", buffer=gradients, weight=weight or Weight("power", 4.0, "row", "step"))


def gba(gradients: int, max_staleness: int | None = 3, tokens: Tokens = "data", weight: Weight | None = None) -> Pace:
    """Global batch aggregation: `gradients` per update, those staler than `max_staleness` updates are cut."""
    return Pace("gba", buffer=gradients, limit=max_staleness, tokens=tokens, holds=True, weight=weight)
