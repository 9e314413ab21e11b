"""This machine as a described cluster, so that one prediction and one simulator serve both."""

from __future__ import annotations

from paceline.clusterspec import ClusterSpec
from paceline.planning.facts import Candidate, DataFacts, MachineFacts

_FAST = 1e9  # Gbit/s: nothing travels


def twin(machine: MachineFacts, data: DataFacts, candidate: Candidate) -> ClusterSpec:
    """A cluster whose workers are the candidate's threads on this machine.

    Cores: G workers want G cores and what reading takes; on fewer everybody is slower in proportion. Updates run alone:
    under collectives they are the latency of a round, otherwise the time of the one server.
    """
    n, b, gradients = candidate.workers, candidate.local, candidate.gradients
    slower = slow_down(machine, n, b)
    alone = machine.busy(b) * slower
    slope = (machine.busy(b) - machine.busy(max(b // 2, 1))) / max(b - b // 2, 1) * slower if b > 1 else 0.0
    slope = min(max(slope, 0.0), alone / b)
    update = machine.apply(b, gradients if candidate.collective else 1)
    if not candidate.collective:
        buffer = candidate.pace.build(gradients).buffer
        update = machine.apply(b, buffer) / buffer
    turns = -(-gradients // n)  # of each worker in a round, two exchanges each, and one sum at the end
    exchanges = 2 * turns + (n > 1)
    size = data.bytes(b, candidate.collective)
    return ClusterSpec.model_validate(
        {
            "workers": n,
            "compute": {"fixed_ms": 1e3 * (alone - slope * b), "per_sample_us": 1e6 * slope},
            "network": {"latency_ms": 0.0, "bandwidth_gbps": _FAST},
            "servers": {"count": 1, "ms_per_mb": 1e9 * update / (2 * size)},
            "allreduce": {"latency_ms": 1e3 * update / exchanges, "bandwidth_gbps": _FAST},
        }
    )


def slow_down(machine: MachineFacts, workers: int, samples: int) -> float:
    """How many times as long a gradient takes as on an idle machine: shared caches and one interpreter (crowding, as
    measured on all cores), and more threads than cores, one of which reads."""
    busy = machine.busy(samples)
    crowd = 1.0
    if machine.cores > 1:
        crowd += (machine.crowding - 1.0) * (min(workers, machine.cores) - 1) / (machine.cores - 1)
    wanted = workers * (1.0 + machine.read_cpu * samples / (busy * crowd))
    return crowd * max(1.0, wanted / machine.cores)
