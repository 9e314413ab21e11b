"""What could be run: every sensible combination of workers, batches, servers and pace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from paceline.config import JobConfig, PaceConfig
from paceline.errors import ConfigError
from paceline.planning.facts import Candidate, DataFacts

_SPLITS = (1, 2, 4, 8)  # local batches for each worker in an update


def worker_counts(most: int) -> list[int]:
    """1, 2, 3, 4, 6, 8, 12, ... and `most`."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({n for p in powers for n in (p, 3 * p // 2) if n <= most} | {most})


def server_counts(most: int) -> list[int]:
    """1, 2, 4, ... and `most`."""
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def paces(config: JobConfig, names: Sequence[str]) -> list[PaceConfig]:
    """The paces to choose from. By default sync and GBA, which make one update of one global batch, so hyper-parameters
    stay, and the job's own (or what `auto` would choose from). Raises ConfigError for unknown names."""
    own = config.pace.candidates if config.pace.name == "auto" else [config.pace]
    by_name = {str(pace.name): pace for pace in own}
    if names:
        return [by_name.get(n) or _pace(n) for n in names]
    found = {"sync": PaceConfig(name="sync"), "gba": PaceConfig(name="gba"), **by_name}
    return list(found.values())


def _pace(name: str) -> PaceConfig:
    known = [str(n) for n in PaceConfig.model_fields["name"].annotation.__args__ if n != "auto"]  # type: ignore[union-attr]
    if name not in known:
        raise ConfigError(f"--pace {name!r} is no pace to plan for; choose from {', '.join(known)}")
    return PaceConfig.model_validate({"name": name})


def global_batches(config: JobConfig, text: str | None) -> list[int]:
    """The job's global batch alone, which convergence fixes; with LOW:HIGH its multiples and parts by powers of two in
    between. Raises ConfigError."""
    own = config.batch.global_
    if text is None:
        return [own]
    low, colon, high = text.partition(":")
    if not (colon and low.isdigit() and high.isdigit() and 1 <= int(low) <= int(high)):
        raise ConfigError(f"--global-batch {text!r} must be LOW:HIGH, for example {own}:{8 * own}")
    doubled = {own * 2**k for k in range(32)} | {own >> k for k in range(32) if own % 2**k == 0}
    found = sorted(n for n in doubled if int(low) <= n <= int(high))
    if not found:
        raise ConfigError(f"--global-batch {text}: no {own} (batch.global) by a power of two lies in between")
    return found


def local_batches(global_: int, workers: int) -> list[int]:
    """Those that divide the global batch and give every worker 1, 2, 4 or 8 gradients in an update, or as nearly as can
    be; none if the global batch is smaller than the number of workers."""
    small = [m for m in range(1, math.isqrt(global_) + 1) if global_ % m == 0]
    divisors = sorted({d for m in small for d in (m, global_ // m)})
    counts = {next((m for m in divisors if m >= workers * k), None) for k in _SPLITS}
    return sorted((global_ // m for m in counts if m is not None), reverse=True)


def measured_sizes(sizes: Sequence[int]) -> list[int]:
    """The smallest, the largest and one between, at which computing times are measured; not below 16 samples nor above
    16,384, which tell little or take long."""
    low, high = max(sizes[0], min(16, sizes[-1])), min(sizes[-1], max(16_384, sizes[0]))
    return sorted({low, round((low * high) ** 0.5), high})


def candidates(
    globals_: Sequence[int], most_workers: int, most_servers: int, choices: Sequence[PaceConfig]
) -> Iterator[Candidate]:
    """All combinations. No more workers than gradients in an update: others would wait, or make all gradients stale."""
    for global_ in globals_:
        for workers in worker_counts(most_workers):
            for local in local_batches(global_, workers):
                for pace in choices:
                    gradients = global_ // local
                    servers = [None] if pace.build(gradients).collective else server_counts(most_servers)
                    yield from (Candidate(workers, local, global_, pace, count) for count in servers)


def fits(candidate: Candidate, data: DataFacts, memory: float | None) -> bool:
    """Whether a worker's memory (bytes) holds a gradient of the local batch (3.1 of our note): activations, three times
    the dense parameters, rows and their gradients."""
    return memory is None or left(candidate, data, memory) >= 2 * data.row_bytes(candidate.local)


def left(candidate: Candidate, data: DataFacts, memory: float) -> float:
    """W(X): bytes that activations and dense parameters (weight, gradient, slot) leave."""
    return memory - data.activations * candidate.local - 3 * 4 * data.dense
