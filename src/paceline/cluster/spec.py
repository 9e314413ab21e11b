"""What a process of the cluster has to know; it travels to other machines."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import yaml

from paceline.config import JobConfig
from paceline.exchange.security import Security


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A process with a shard, a worker or both. config: of the job, as YAML; shard: its number, of `shards`;
    worker: its number; ahead: leases that its worker holds while it computes one; bf16: rows travel as bfloat16; slow:
    how many times slower than it is the worker has to be; exchange: in steps that all take part in."""

    name: str
    config: str
    shards: int
    shard: int | None
    worker: int | None
    ahead: int = 1
    bf16: bool = False
    slow: float = 1.0
    security: Security = field(default_factory=Security)
    exchange: Literal["auto", "rows", "substitute"] = "auto"

    @property
    def known_as(self) -> tuple[str, ...]:
        """What a person may call it."""
        shard = () if self.shard is None else (f"shard-{self.shard}",)
        return (self.name, *shard, *(() if self.worker is None else (f"worker-{self.worker}",)))

    def job(self) -> JobConfig:
        return JobConfig.model_validate(yaml.safe_load(self.config))


def helper_name(number: int) -> str:
    """What the process with a worker only, number `number` of them, is called."""
    return f"helper-{number}"


def roles(nodes: int, servers: int, workers: int) -> list[tuple[str, int | None, int | None]]:
    """(name, shard, worker) of every process: nodes have both, then come those with a shard only, then those with a
    worker only."""
    found: list[tuple[str, int | None, int | None]] = [(f"node-{i}", i, i) for i in range(nodes)]
    found += [(f"server-{i}", nodes + i, None) for i in range(servers)]
    return found + [(helper_name(i), None, nodes + i) for i in range(workers)]
