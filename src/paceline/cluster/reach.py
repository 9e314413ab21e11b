"""Who reaches whom, as the processes of a cluster tell the coordinator once a second."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paceline.errors import ClusterLost
from paceline.exchange.pulse import SILENCE

PATIENCE = 60.0  # seconds without a process that could work
GRACE = 8.0  # seconds in which those who could not reach each other may again


@dataclass(frozen=True, slots=True)
class _Told:
    at: float
    works: bool
    unreachable: tuple[str, ...]


class Reach:
    """Of one generation, whose shards are at `addresses`. Not thread-safe: the office holds its lock.

    A process that was not heard of for SILENCE seconds is not there, whatever it said before.
    """

    def __init__(self, addresses: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._addresses, self._clock = list(addresses), clock
        self._told: dict[str, _Told] = {}
        self._able = clock()  # when somebody was last known to be able to work
        self._said: dict[str, tuple[str, ...]] = {}

    def hear(self, process: str, works: bool, unreachable: Sequence[str]) -> bool:
        """A process told of itself; whether that is new. unreachable: shards that are silent to it."""
        before, told = self._told.get(process), _Told(self._clock(), works, tuple(unreachable))
        self._told[process] = told
        if works and not unreachable:
            self._able = told.at
        return before is None or before.unreachable != told.unreachable

    def apart(self) -> dict[str, tuple[str, ...]]:
        """Processes that cannot reach some shards, and the addresses of these."""
        return {name: told.unreachable for name, told in self._present().items() if told.unreachable}

    def idle(self) -> int:
        """How many workers cannot work, because they do not reach all shards."""
        return sum(told.works and bool(told.unreachable) for told in self._present().values())

    def news(self) -> str | None:
        """The same for people, if it has changed since the last call."""
        apart, before = self.apart(), self._said
        if apart == before:
            return None
        self._said = apart
        if apart:
            pairs = [f"{name} cannot reach {self._name(a)}" for name, away in apart.items() for a in away]
            return f"{', '.join(sorted(pairs))}: others do its work meanwhile, by push and pull"
        return "all processes reach each other again" if before.keys() <= self._present().keys() else None

    def stuck(self, grace: float = GRACE) -> ClusterLost | None:
        """Why nobody can work, if that has been so for a while: for `grace` seconds because of shards that none of the
        workers reaches all of, or for PATIENCE because there is none. The shard that most cannot reach is named."""
        workers, away = [told for told in self._present().values() if told.works], self._clock() - self._able
        if workers and all(told.unreachable for told in workers) and away > grace:
            counted = Counter(address for told in workers for address in told.unreachable)
            address = max(counted, key=lambda a: (counted[a], self._addresses.index(a)))
            return ClusterLost(f"no worker reaches all shards, most not {self._name(address)}", (address,))
        if not workers and away > PATIENCE:
            return ClusterLost(f"no worker was heard of for {PATIENCE:g} seconds")
        return None

    def _present(self) -> dict[str, _Told]:
        since = self._clock() - SILENCE
        return {name: told for name, told in self._told.items() if told.at >= since}

    def _name(self, address: str) -> str:
        return f"shard {self._addresses.index(address)} at {address}"
