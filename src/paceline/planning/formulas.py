"""The formulas of planning. Pure: standard library only. Times in seconds, sizes in bytes, bandwidths in bytes/s.

Source: Zou et al., "Distributed Training Large-Scale Deep Architectures" (arXiv 1709.06622), as reconstructed in our
note: 3.1 choice of algorithms under a memory limit, 3.2 number of workers (strong scaling: the global batch is fixed,
so T_C is divided by G while T_O is not), 3.3 number of parameter servers. Skew, duplex and stragglers are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


def speed_up(workers: int, overhead: float) -> float:
    """S(G) = G (1 + R_O) / (1 + G R_O). overhead: R_O = T_O / T_C of one worker, >= 0 (3.2)."""
    if workers < 1 or overhead < 0:
        raise ValueError(f"workers {workers} must be at least 1 and overhead {overhead} at least 0")
    return workers * (1 + overhead) / (1 + workers * overhead)


def efficiency(workers: int, overhead: float) -> float:
    """S(G) / G, between 0 and 1 (3.2)."""
    return speed_up(workers, overhead) / workers


def speed_up_limit(overhead: float) -> float:
    """S(inf) = (1 + R_O) / R_O; infinite without overhead (3.2)."""
    return math.inf if overhead == 0 else (1 + overhead) / overhead


def admissible_overhead(workers: int, target: float) -> float:
    """The largest R_O with which `workers` reach the efficiency `target`: (1 - eff) / (eff G - 1). Infinite where
    eff G <= 1: one worker's throughput is reached with any overhead (3.2)."""
    _check_target(target)
    return math.inf if target * workers <= 1 else (1 - target) / (target * workers - 1)


def admissible_workers(overhead: float, target: float) -> float:
    """The most workers, not rounded, that reach the efficiency `target`: (1 + R_O - eff) / (eff R_O) (3.2)."""
    _check_target(target)
    return math.inf if overhead == 0 else (1 + overhead - target) / (target * overhead)


def _check_target(target: float) -> None:
    if not 0 < target <= 1:
        raise ValueError(f"the target efficiency {target} must be above 0 and at most 1")


def servers_needed(
    size: float, workers: int, bandwidth: float, compute: float, skew: float = 1.0, duplex: bool = False
) -> int:
    """N_ps >= ceil(2 S_p G skew / (B_ps T_C)): servers that hide the exchange behind computing (3.3).

    size: S_p, bytes one way per worker and round; bandwidth: B_ps of a server; skew: largest shard's load / mean, >= 1;
    duplex: both ways at once, without the factor 2.
    """
    if compute <= 0 or bandwidth <= 0:
        raise ValueError(f"bandwidth {bandwidth} and computing time {compute} must be above 0")
    ways = 1 if duplex else 2
    return max(1, math.ceil(ways * size * workers * skew / (bandwidth * compute) - 1e-9))


def worker_link_seconds(size: float, bandwidth: float, duplex: bool = False) -> float:
    """2 S_p / B_w: what the worker's own link takes for a round; hidden if it is at most T_C (3.3)."""
    return (1 if duplex else 2) * size / bandwidth


def ring_seconds(size: float, workers: int, bandwidth: float) -> float:
    """2 S_p (G - 1) / G / B_w: what a ring all-reduce takes; hidden if it is at most T_C (3.3)."""
    return 2 * size * (workers - 1) / workers / bandwidth


def expected_maximum(times: Sequence[float], draws: int) -> float:
    """The expected largest of `draws` independent draws from the measured `times`: the step of a barrier (ours).

    Exact for the empirical distribution: sum over sorted t_k of t_k ((k/n)^G - ((k-1)/n)^G).
    """
    if not times or draws < 1:
        raise ValueError("at least one time and one draw are needed")
    n = len(times)
    return sum(t * ((k / n) ** draws - ((k - 1) / n) ** draws) for k, t in enumerate(sorted(times), 1))


class Algorithm(NamedTuple):
    """One way to do a layer or to exchange an operator's rows. seconds: its time; memory: whole units, >= 0."""

    name: str
    seconds: float
    memory: int


def choose_algorithms(layers: Sequence[Sequence[Algorithm]], limit: int) -> tuple[Algorithm, ...] | None:
    """One algorithm a layer with the least total time and at most `limit` memory in all (3.1); None if none fits.

    Dynamic programming over memory: for every amount that is in use the least time. Only amounts that occur are kept,
    and of those only what is not beaten by less memory in less time.
    """
    if limit < 0:
        return None
    front: list[tuple[int, float, tuple[Algorithm, ...]]] = [(0, 0.0, ())]
    for layer in layers:
        best: dict[int, tuple[float, tuple[Algorithm, ...]]] = {}
        for (used, seconds, chosen), way in itertools.product(front, layer):
            memory, total = used + way.memory, seconds + way.seconds
            if memory <= limit and (memory not in best or total < best[memory][0]):
                best[memory] = (total, (*chosen, way))
        front, least = [], math.inf
        for memory in sorted(best):
            total, picked = best[memory]
            if total < least:
                least = total
                front.append((memory, total, picked))
    return front[-1][2] if front else None
