"""The autopilot: which of a few paces is the fastest on the cluster as it is now. It decides; the coordinator switches.

Pure, like the machine: no clock and no randomness. It is told of every gradient how long its worker computed and when
it came, and what it decides is a function of that alone, in every runtime; a recorded trace gives the same decisions.

Throughput is looked at in windows of some updates. A candidate's is predicted in two steps. The model (`modelled`)
takes each worker's computing times in the window (or of before, if it brought nothing in it): with a barrier, a round
lasts until its last gradient is there; without one, every worker goes at its own rate. What the model leaves out
(transfers, queues, gradients dropped as stale, wrong reports of times) is one number for each candidate, the share of
the modelled throughput that was measured while it was in use (`efficiency`); for one that was never in use, that of the
pace in use. So a decision that was wrong corrects itself: the next measurement says so.

The candidates are in the order of preference. A less preferred one has to promise `margin` more, a more preferred one
is taken up again as soon as it promises as much, less a third of that; either for `patience` windows in a row.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from paceline.pace.values import Pace

LEAST = 8  # gradients in a window
_LATEST = 8  # computing times of a worker that rounds are played with
_MEMORY = 0.5  # what a new measurement counts against those before


@dataclass(frozen=True, slots=True)
class Fact:
    """A gradient arrived. worker: whose; samples: of its batch; seconds: that it was computed for; now: when it came,
    on any clock that goes on; applied, version: what the machine's account says after it; workers: who is here."""

    worker: str
    samples: int
    seconds: float
    now: float
    applied: int
    version: int
    workers: Collection[str]


@dataclass(frozen=True, slots=True)
class Decision:
    """Go on at `pace`. predicted: samples per second of each candidate by its name; measured: of the pace until now."""

    pace: Pace
    measured: float
    predicted: Mapping[str, float]
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a log."""
        predicted = {name: round(value, 3) for name, value in self.predicted.items()}
        return {"pace": self.pace.name, "measured": round(self.measured, 3), "predicted": predicted,
                "reason": self.reason}  # fmt: skip


def rounds_rate(times: Sequence[Sequence[float]], buffer: int, round_: int) -> float:
    """Gradients per second under a barrier: `round_` a round are granted, to whoever waits longest, and the first
    `buffer` end it; what comes of an earlier round does not count. times: of each worker, seconds of its gradients in
    turn, over and over."""
    waiting = deque(range(len(times)))
    busy: list[tuple[float, int, int]] = []  # (when it comes, who, round)
    turns = [0] * len(times)
    now = 0.0
    # So many that everybody's turn comes as often as it has times, so that jitter and turns to wait both count.
    rounds = max(8, max(map(len, times)) * -(-len(times) // buffer))
    for number in range(rounds):
        granted = came = 0
        while came < buffer:
            while waiting and granted < round_:
                worker = waiting.popleft()
                heapq.heappush(busy, (now + times[worker][turns[worker] % len(times[worker])], worker, number))
                turns[worker] += 1
                granted += 1
            now, worker, of = heapq.heappop(busy)
            waiting.append(worker)
            came += of == number
    return buffer * rounds / now


def modelled(pace: Pace, times: Sequence[Sequence[float]]) -> float:
    """Gradients per second at `pace` if nothing but computing took time. times: the latest ones of each worker."""
    means = [sum(own) / len(own) for own in times]
    if pace.round is not None:
        return rounds_rate([own[-_LATEST:] for own in times], pace.buffer, pace.round)
    if pace.spread is not None:
        return len(means) / max(means)  # nobody gets away from the slowest
    return sum(1.0 / mean for mean in means)


def _process(worker: str) -> str:
    """Seats of one process ("worker-0", "worker-0+1") compute in turn: they are one worker."""
    return worker.partition("+")[0]


class Pilot:
    """candidates: in the order of preference, the first is the one to begin with. margin: the gain, as a share, for
    which a less preferred pace is worth a switch; patience: windows in a row that have to agree."""

    def __init__(self, candidates: Sequence[Pace], margin: float = 0.15, patience: int = 2) -> None:
        self.candidates, self.margin, self.patience = tuple(candidates), margin, patience
        self.chosen = 0
        self._times: dict[str, list[float]] = {}  # seconds per sample, in this window
        self._before: dict[str, list[float]] = {}  # and when the worker was last heard of before it
        self._efficiency: dict[str, float] = {}
        self._streak = (0, 0)  # (candidate, windows in a row that were for it)
        self._version = -1
        self._window: tuple[float, int] | None = None  # (moment, samples applied) at its beginning
        self._gradients = self._samples = 0

    @property
    def pace(self) -> Pace:
        """The pace that it has chosen."""
        return self.candidates[self.chosen]

    def pause(self) -> None:
        """Nobody works for a while (a day ends): that time does not count."""
        self._window = None

    def observe(self, fact: Fact) -> Decision | None:
        """Take in a gradient; a decision if it is time for another pace."""
        if fact.seconds > 0.0 and fact.samples > 0:
            self._times.setdefault(_process(fact.worker), []).append(fact.seconds / fact.samples)
        self._gradients += 1
        self._samples += fact.samples
        # Of the first one nobody knows what came before it: it begins nothing.
        updated, self._version = self._version not in (-1, fact.version), fact.version
        if not updated:
            return None  # only whole updates make a rate
        if self._window is None:
            self._begin(fact)
            return None
        most = max(pace.buffer for pace in self.candidates)
        if self._gradients < max(LEAST, 2 * most, 2 * len(fact.workers)) or fact.now <= self._window[0]:
            return None
        measured = (fact.applied - self._window[1]) / (fact.now - self._window[0])
        times = self._known(fact.workers)
        mean = self._samples / self._gradients
        self._begin(fact)
        return self._decide(measured, mean, times) if times else None

    def _begin(self, fact: Fact) -> None:
        self._window = fact.now, fact.applied
        self._gradients = self._samples = 0
        self._before |= self._times
        self._times = {}

    def _known(self, workers: Collection[str]) -> dict[str, list[float]]:
        """The times of those who are here; a newcomer is taken for a usual worker. Empty if nobody has any."""
        here = {_process(worker) for worker in workers}
        known = {name: own for name, own in {**self._before, **self._times}.items() if name in here}
        self._before = {name: own for name, own in self._before.items() if name in here}
        if not known:
            return {}
        usual = [median(sum(own) / len(own) for own in known.values())]
        return {name: known.get(name, usual) for name in sorted(here)}

    def _decide(self, measured: float, samples: float, times: dict[str, list[float]]) -> Decision | None:
        own = [[second * samples for second in each] for each in times.values()]
        rates = {pace.name: samples * modelled(pace, own) for pace in self.candidates}
        name = self.pace.name
        share = min(max(measured / rates[name], 0.01), 10.0)
        before = self._efficiency.get(name, share)
        self._efficiency[name] = before + _MEMORY * (share - before)
        usual = self._efficiency[name]
        predicted = {pace: rate * self._efficiency.get(pace, usual) for pace, rate in rates.items()}
        wanted = self._wanted(predicted)
        if wanted == self.chosen:
            self._streak = (wanted, 0)
            return None
        self._streak = (wanted, self._streak[1] + 1 if self._streak[0] == wanted else 1)
        if self._streak[1] < self.patience:
            return None
        reason = self._reason(self.candidates[wanted].name, predicted, measured, times)
        self.chosen, self._streak = wanted, (wanted, 0)
        self.pause()
        return Decision(self.pace, measured, predicted, reason)

    def _wanted(self, predicted: Mapping[str, float]) -> int:
        """The candidate to be used: the most preferred that is nearly as fast as the one in use, or a faster one."""
        here = predicted[self.pace.name]
        for better in range(self.chosen):
            if predicted[self.candidates[better].name] > here * (1.0 - self.margin / 3.0):
                return better
        rest = range(self.chosen + 1, len(self.candidates))
        fastest = max(rest, key=lambda i: (predicted[self.candidates[i].name], -i), default=self.chosen)
        promised = predicted[self.candidates[fastest].name]
        return fastest if promised > here * (1.0 + self.margin) else self.chosen

    def _reason(self, name: str, predicted: Mapping[str, float], measured: float, times: dict[str, list[float]]) -> str:
        means = {worker: sum(own) / len(own) for worker, own in times.items()}
        slowest = max(means, key=lambda worker: means[worker])
        lag = means[slowest] / median(means.values())
        return (
            f"{name} promises {predicted[name]:,.0f} samples/s, {self.pace.name} {predicted[self.pace.name]:,.0f}"
            f" ({measured:,.0f} measured); {slowest} takes {lag:.1f} times as long as the usual one of"
            f" {len(means)} workers"
        )

    # --- what a checkpoint keeps ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """What it knows; a window that is open is not kept."""
        return {
            "chosen": self.pace.name,
            "times": {**self._before, **self._times},
            "efficiency": dict(self._efficiency),
            "streak": list(self._streak),
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Go on from `to_json` of a pilot with the same candidates; with others, what does not fit is forgotten."""
        names = [pace.name for pace in self.candidates]
        self._before = {worker: list(own) for worker, own in value["times"].items()}
        self._efficiency = {name: share for name, share in value["efficiency"].items() if name in names}
        if value["chosen"] in names:
            self.chosen = names.index(value["chosen"])
            self._streak = (value["streak"][0], value["streak"][1]) if value["streak"][0] < len(names) else (0, 0)
