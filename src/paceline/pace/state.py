"""What the pace machine remembers: a few counters and the gradients that are not settled yet."""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from paceline.pace.messages import Event
from paceline.pace.values import Pace

STORY_LENGTH = 24


@dataclass(slots=True)
class Lease:
    """Who computes a gradient, with which token, on which version of the parameters."""

    worker: str
    token: int
    version: int


@dataclass(slots=True)
class Account:
    """Every sample ends exactly once: read == applied + dropped + in flight, at every moment."""

    read: int = 0
    applied: int = 0
    dropped: int = 0
    updates: int = 0
    gradients_applied: int = 0
    gradients_dropped: int = 0
    lost_leases: int = 0


@dataclass(slots=True)
class State:
    """The whole state. Only `paceline.pace.machine.step` changes it."""

    pace: Pace
    version: int = 0
    next_batch: int = 0
    head: int = 0  # token generator: the value that is handed out now ...
    left: int = 0  # ... and how often still (never granted // buffer: the buffer may change)
    ended: bool = False
    drained: bool = True
    account: Account = field(default_factory=Account)
    samples: dict[int, int] = field(default_factory=dict)  # of every gradient that is not settled
    ready: list[int] = field(default_factory=list)  # read, not granted; ascending
    leases: dict[int, Lease] = field(default_factory=dict)
    buffer: dict[int, Lease] = field(default_factory=dict)
    fresh: int = 0  # leases on the current version
    steps: dict[str, int] = field(default_factory=dict)  # live workers: steps finished since they joined or the switch
    holding: dict[str, int] = field(default_factory=dict)  # worker -> the gradient it computes
    waiting: dict[str, None] = field(default_factory=dict)  # ordered: first come, first served
    story: deque[Event] = field(default_factory=lambda: deque(maxlen=STORY_LENGTH))

    @property
    def in_flight(self) -> int:
        """Samples read and neither applied nor dropped yet."""
        return sum(self.samples.values())

    def put_back(self, gradient: int) -> None:
        """Return a lost lease to the batches that wait, in its old place."""
        insort(self.ready, gradient)

    def next_token(self) -> int:
        """Take the next token; each data-order value appears `pace.buffer` times."""
        if self.pace.tokens == "version":
            return self.version
        if self.left == 0:
            self.head += 1
            self.left = self.pace.buffer
        self.left -= 1
        return self.head

    def restart_tokens(self) -> None:
        self.head, self.left = self.version, self.pace.buffer


def begin(pace: Pace) -> State:
    """An empty machine at version 0."""
    state = State(pace)
    state.restart_tokens()
    return state


def to_json(state: State) -> dict[str, Any]:
    """What a checkpoint keeps. Unsettled gradients are not kept: their batches are read again (see `Snapshot`)."""
    account = asdict(state.account)
    account["read"] = state.account.applied + state.account.dropped
    return {
        "pace": state.pace.to_json(),
        "version": state.version,
        "next_batch": state.next_batch,
        "account": account,
    }


def from_json(value: dict[str, Any], pace: Pace | None = None) -> State:
    """A machine that goes on from a checkpoint, under its own pace or another; no worker has joined it yet."""
    state = State(pace or Pace.from_json(value["pace"]), version=value["version"], next_batch=value["next_batch"])
    state.account = Account(**value["account"])
    state.restart_tokens()
    return state
