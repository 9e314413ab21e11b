"""What goes into the pace machine (events, facts in the past tense) and what comes out (commands, imperatives).

Gradients themselves never pass: a gradient is known by the number of its batch, and each batch yields exactly one
gradient. A lease that is lost and issued again is another attempt at the same gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from paceline.pace.values import Pace
from paceline.pace.weights import Weight


@dataclass(frozen=True, slots=True)
class BatchRead:
    """The data stream delivered the next batch. samples: its number of rows, >= 1."""

    samples: int


@dataclass(frozen=True, slots=True)
class DataEnded:
    """No further batch will come until everything granted is settled and `Drained` was ordered."""


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    worker: str


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker is gone; what it was computing is handed to another."""

    worker: str


@dataclass(frozen=True, slots=True)
class WorkRequested:
    """A worker is free. It is answered by a `Grant`, perhaps much later."""

    worker: str


@dataclass(frozen=True, slots=True)
class GradientPushed:
    worker: str
    gradient: int


@dataclass(frozen=True, slots=True)
class PaceSwitched:
    pace: Pace


@dataclass(frozen=True, slots=True)
class SnapshotRequested:
    pass


Event = (
    BatchRead
    | DataEnded
    | WorkerJoined
    | WorkerLeft
    | WorkRequested
    | GradientPushed
    | PaceSwitched
    | SnapshotRequested
)


@dataclass(frozen=True, slots=True)
class Grant:
    """Let `worker` compute gradient `gradient` (= that batch) on the parameters as they stand now."""

    worker: str
    gradient: int
    token: int


@dataclass(frozen=True, slots=True)
class Part:
    """One gradient's place in an update.

    share: its samples over the samples of all parts (all = divisor M for equal batches).
    factor: what the dense gradient is multiplied by: 0.0 if the staleness rule cuts it, else its weight, or 1.0 if the
        pace weighs steps.
    token: what the row rule compares a row's last update with.
    weight: for its staleness in updates (1.0 where the pace weighs nothing).
    version: of the parameters that it was granted on.
    """

    gradient: int
    share: float
    factor: float
    token: int
    weight: float = 1.0
    version: int = 0


@dataclass(frozen=True, slots=True)
class Apply:
    """Make version `version` out of `parts`, sorted by gradient, so that sums never depend on who came first.

    row_limit: a row of a part is kept if max(0, last_update - token) <= row_limit (None: always).
    samples: applied so far, this update included: the clock of learning-rate periods.
    weighing: whether weights are on gradients or on steps, and by which law a row is weighed by its own staleness.
    workers: live workers, which that law may need.
    """

    version: int
    parts: tuple[Part, ...]
    row_limit: int | None
    samples: int = 0
    weighing: Weight | None = None
    workers: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget gradient `gradient`: it came `staleness` updates late."""

    gradient: int
    staleness: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Store the state of version `version`. pending: gradients granted and not settled; whoever restores reads these
    batches again."""

    version: int
    pending: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Drained:
    """Everything read is settled: samples read = applied + dropped."""

    version: int


Command = Grant | Apply | Drop | Snapshot | Drained
