"""The formulas' figures for a candidate, beside what the prediction says."""

from __future__ import annotations

import math
from typing import Any

from paceline.clusterspec import ClusterSpec
from paceline.planning import formulas as f
from paceline.planning.facts import DataFacts
from paceline.planning.predict import Prediction

TARGET = 0.8  # efficiency that is asked for


def figures(chosen: Prediction, alone: Prediction, spec: ClusterSpec, data: DataFacts) -> dict[str, Any]:
    """3.2 and 3.3 of our note with the candidate's numbers. alone: one worker with the whole global batch.

    Strong scaling: T_C is that of the whole global batch on one worker, T_O what the chosen workers do not hide in a
    round. Infinite values are None.
    """
    candidate = chosen.candidate
    n, rounds = candidate.workers, candidate.gradients / candidate.workers
    step = chosen.step
    hidden_not = (step["transfer"] + step["servers"] + step["update"]) * rounds
    compute = alone.step["compute"]
    overhead = hidden_not / compute if compute else math.inf
    size = data.bytes(candidate.local, candidate.collective)
    bandwidth = 1e9 / spec.servers.ms_per_mb if spec.servers.ms_per_mb else math.inf
    link = spec.allreduce if candidate.collective else spec.network
    wire = link.bandwidth_gbps * 1e9 / 8
    skew = data.skew.get(candidate.servers or 1, 1.0)
    largest = f.expected_maximum(chosen.times, n)
    mean = sum(chosen.times) / len(chosen.times)
    finite = math.isfinite(overhead)
    return {
        "T_C_s": compute,
        "T_O_s": hidden_not,
        "R_O": _finite(overhead),
        "speed_up_by_formula": f.speed_up(n, overhead) if finite else None,
        "speed_up_predicted": chosen.samples_per_s / alone.samples_per_s,
        "speed_up_limit": _finite(f.speed_up_limit(overhead)) if finite else None,
        "workers_for_80_percent": _finite(f.admissible_workers(overhead, TARGET)) if finite else None,
        "overhead_for_80_percent": _finite(f.admissible_overhead(n, TARGET)),
        "bytes_one_way": size,
        "bytes_per_sample": size / candidate.local,
        "servers_needed": f.servers_needed(size, n, bandwidth, step["compute"], skew)
        if step["compute"] and math.isfinite(bandwidth) and not candidate.collective
        else None,
        "skew": skew,
        "worker_link_s": f.worker_link_seconds(size, wire),
        "ring_s": f.ring_seconds(4 * data.dense, n, wire),
        "gradient_s": step["compute"],
        "slowest_of_all_s": largest,
        "barrier_costs": largest / mean if mean else 1.0,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
