"""The throughput of a candidate on a described cluster, by formulas: no event of the cluster is played through.

A gradient's way is computing, transfers and the servers' queue. Computing times are drawn from the cluster as it is
described (speeds, jitter, slow spells, recorded times), so the slowest of a round counts as often as it comes; what
the pace makes of them is `pace.modelled`, the autopilot's model. Around it:

- push and pull: 3 latencies, 2 transfers, 2 visits to the servers (`queueing.waiting`; they are a limit of capacity);
- collectives: 2 exchanges of rows for a gradient, and a ring's sum of the dense gradients for a round;
- GBA: gradients that come too late are not applied, so they do not count;
- slow spells: the mean over windows of time, each with the workers as they are in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paceline.clusterspec import ClusterSpec
from paceline.pace import Pace
from paceline.pace.pilot import modelled
from paceline.planning.facts import Candidate, DataFacts
from paceline.planning.queueing import waiting
from paceline.runtimes.virtual_cluster import Doubles, Speeds

_TURNS = 96  # gradients of each worker in a window, where jitter is all that changes ...
_DRAWS = 16_384  # ... and no more than this of all workers together (twice as many under spells), but a few of each
_FEW = 8
_WINDOWS = 48  # of time and of a few gradients, where workers have slow spells ...
_CYCLES = 4  # ... or one as long as all of them, if it sees so many slow spells of a worker
_PHASES = 64  # of an update at which a gradient may be granted
Times = list[list[float]]  # of each worker, seconds of one gradient after another


@dataclass(frozen=True, slots=True)
class Prediction:
    """samples_per_s: that are applied; step: seconds of a gradient by what they go into (compute, transfer, servers,
    waiting: for the round to end; update: the ring's sum, shared among the gradients of a worker's round); late: share
    of gradients that are not applied; times: drawn computing times, seconds; capacity: samples/s that servers allow."""

    candidate: Candidate
    samples_per_s: float
    step: Mapping[str, float]
    late: float
    times: tuple[float, ...]
    capacity: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the drawn times."""
        step = {name: round(seconds, 9) for name, seconds in self.step.items()}
        capacity = None if math.isinf(self.capacity) else round(self.capacity, 3)
        return {**self.candidate.to_json(), "samples_per_s": round(self.samples_per_s, 3), "step_s": step,
                "late_share": round(self.late, 6), "servers_allow": capacity}  # fmt: skip


def on(spec: ClusterSpec, candidate: Candidate) -> ClusterSpec:
    """The cluster with the candidate's workers and servers."""
    changes: dict[str, Any] = {"workers": candidate.workers}
    if candidate.servers is not None:
        changes["servers"] = spec.servers.model_copy(update={"count": candidate.servers})
    return spec.model_copy(update=changes)


def predict(
    candidate: Candidate, spec: ClusterSpec, data: DataFacts, recorded: list[Doubles] | None = None
) -> Prediction:
    """What `candidate` reaches on `spec`, whose workers and servers it replaces. recorded: times as in
    `clusterfile.load_times`."""
    spec = on(spec, candidate)
    pace = candidate.pace.build(candidate.gradients)
    size = data.bytes(candidate.local, pace.collective)
    drawn = windows(spec, candidate.local, pace, recorded, _transfer(spec, pace, size))
    found = [_window(pace, times, spec, data, size) for times in drawn]
    mean = {name: sum(way[name] for way in found) / len(found) for name in found[0] if name != "rate"}
    rate = sum(way["rate"] for way in found) / len(found) * _present(spec, sum(mean.values()))
    late = mean.pop("late")
    flat = tuple(t for window in drawn for own in window for t in own)
    service = size * _per_byte(spec)
    capacity = math.inf if pace.collective or not service else candidate.local / (2 * service)
    return Prediction(candidate, rate * candidate.local, mean, late, flat, capacity)


def windows(
    spec: ClusterSpec, samples: int, pace: Pace, recorded: list[Doubles] | None = None, away: float = 0.0
) -> list[Times]:
    """Computing times of all workers in some windows of time, drawn from the cluster's own description. away: seconds
    between a worker's gradients."""
    speeds, stragglers = Speeds(spec, recorded), spec.stragglers
    if recorded is not None:
        return [[recorded[w % len(recorded)][:_TURNS].tolist() for w in range(spec.workers)]]
    if stragglers.spells is None:
        turns = min(_TURNS, max(_DRAWS // spec.workers, _FEW)) if spec.compute.jitter_sigma else 1
        return [_draw(speeds, spec.workers, samples, pace, away, turns, 0.0, 0)]
    cycle, step = sum(stragglers.spells), spec.compute.fixed_ms / 1e3 + samples * spec.compute.per_sample_us / 1e6
    count = min(_WINDOWS, max(2 * _DRAWS // (spec.workers * _FEW), _FEW))
    if pace.collective and count * _FEW * (step + away) > _CYCLES * cycle:
        # Rounds begin when a spell has ended as well as at random moments: only a long row of them has them right.
        return [_draw(speeds, spec.workers, samples, pace, away, count * _FEW, 0.0, 0)]
    # Windows far apart are independent; within one, spells that are longer than a step last, as they do in a run.
    apart = 2.0 * cycle + 1.0
    return [_draw(speeds, spec.workers, samples, pace, away, _FEW, window * apart, window) for window in range(count)]


def _draw(
    speeds: Speeds, workers: int, samples: int, pace: Pace, away: float, turns: int, start: float, window: int
) -> Times:
    """`turns` gradients of each worker from `start` on. Where everybody waits for the slowest, they wait through their
    spells as well: a turn begins for all when the one before has ended, on average, at this pace. (Backup workers do
    not wait for the slowest, which goes on by itself.)"""
    together = pace.collective or pace.spread is not None
    now = [start] * workers
    every: Times = [[] for _ in range(workers)]
    for turn in range(turns):
        number = (window * turns + turn) * workers
        for worker, own in enumerate(every):
            own.append(speeds.done(worker, number + worker, samples, now[worker]) - now[worker])
        if together:
            lasts = workers / modelled(pace, [own[-1:] for own in every])
            now = [now[0] + lasts + away] * workers
        else:
            now = [since + own[-1] + away for since, own in zip(now, every, strict=True)]
    return every


def _per_byte(spec: ClusterSpec) -> float:
    """Seconds that the servers together need for a byte."""
    return spec.servers.ms_per_mb / 1e9 / spec.servers.count


def _window(pace: Pace, times: Times, spec: ClusterSpec, data: DataFacts, size: float) -> dict[str, float]:
    """Gradients per second that are applied, and what a gradient's time goes into."""
    means = [sum(own) / len(own) for own in times]
    compute, transfer = sum(means) / len(means), _transfer(spec, pace, size)
    if pace.collective:
        ring = _ring(spec, data)
        busy = len(times) if len(times) < pace.buffer else pace.buffer
        plain = modelled(pace, [[t + transfer for t in own] for own in times])
        rate = pace.buffer / (pace.buffer / plain + ring)
        update = ring * busy / pace.buffer
        waits = max(busy / rate - compute - transfer - update, 0.0)
        return {"rate": rate, "compute": compute, "transfer": transfer, "servers": 0.0, "waiting": waits,
                "update": update, "late": 0.0}  # fmt: skip
    service = size * _per_byte(spec)
    if pace.round is not None:
        # All ask at once: the k-th waits for those before it. Pushes come one by one.
        turns = [[t + transfer + service * (2 + w % pace.round) for t in own] for w, own in enumerate(times)]
        busy, queue = min(len(times), pace.round), service * (2 + (min(len(times), pace.round) - 1) / 2)
    else:
        queue = 2 * waiting([mean + transfer for mean in means], service, 2)
        turns = [[t + transfer + queue for t in own] for own in times]
        busy = len(times)
    rate = modelled(pace, turns)
    if service:
        rate = min(rate, 1 / (2 * service))
    late = _late(pace, turns, rate)
    waits = 0.0 if pace.round is None and pace.spread is None else busy / rate - compute - transfer - queue
    return {"rate": rate * (1 - late), "compute": compute, "transfer": transfer, "servers": queue,
            "waiting": max(waits, 0.0), "update": 0.0, "late": late}  # fmt: skip


def _transfer(spec: ClusterSpec, pace: Pace, size: float) -> float:
    """Seconds that a gradient of `size` bytes each way is on the wire, the servers' queue aside."""
    if pace.collective:
        return 2 * (spec.allreduce.latency_ms / 1e3 + size * 8 / (spec.allreduce.bandwidth_gbps * 1e9))
    return 3 * spec.network.latency_ms / 1e3 + 2 * size * 8 / (spec.network.bandwidth_gbps * 1e9)


def _ring(spec: ClusterSpec, data: DataFacts) -> float:
    """Seconds of the sum of the dense gradients at the end of a round."""
    if spec.workers < 2:
        return 0.0
    byte = 8 / (spec.allreduce.bandwidth_gbps * 1e9)
    return spec.allreduce.latency_ms / 1e3 + 2 * (spec.workers - 1) / spec.workers * 4 * data.dense * byte


def _late(pace: Pace, turns: Sequence[Sequence[float]], rate: float) -> float:
    """The share of gradients beyond the pace's limit of staleness, under a pace without a barrier.

    At a steady rate r, an update comes every M / r seconds. A gradient that is granted at a share u of an update, while
    n are out, has the token floor(u + n / M) (data) or 0 (version) and is settled in update floor(u + r t / M).
    """
    if pace.limit is None or pace.round is not None:
        return 0.0
    ahead = len(turns) / pace.buffer if pace.tokens == "data" else 0.0
    phase = (np.arange(_PHASES) + 0.5) / _PHASES
    lost = total = 0.0
    for own in turns:
        weight = 1.0 / sum(own)  # so many of its gradients a second, over all the turns
        settled = np.floor(phase + rate * np.array(own)[:, None] / pace.buffer)
        lost += weight * int((settled - np.floor(phase + ahead) > pace.limit).sum())
        total += weight * settled.size
    return lost / total


def _present(spec: ClusterSpec, step: float) -> float:
    """The share of time that a worker is there and its work is not lost by its death."""
    mtbf, away = spec.failures.mtbf_s, spec.failures.return_s
    if mtbf is None:
        return 1.0
    return (1.0 if away is None else mtbf / (mtbf + away)) * math.exp(-step / mtbf)
