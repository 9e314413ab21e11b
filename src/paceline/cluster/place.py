"""A connection to the coordinator's office: who is at the other end, and what it waits with."""

from __future__ import annotations

import time
from typing import Any

from paceline.cluster.lockstep import Member
from paceline.runtimes.coordinator import Lease


def process_of(worker: str) -> str:
    """Seats of one process are called worker-2, worker-2+1, ...: the first of them."""
    return worker.split("+")[0]


class Place:
    """A connection to the office: a worker's seat, or a process's rank in steps that all take part in (member).

    ahead: the seat only takes leases while no pace has rounds, so that another one of the same process computes
    meanwhile.
    """

    def __init__(self, opened: dict[str, Any], context: Any) -> None:
        self.generation, self.context = opened["generation"], context
        self.worker = opened["worker"]
        self.ahead = opened.get("ahead", False)
        self.member = Member(opened["rank"], opened["shard"], opened["worker"]) if "rank" in opened else None
        self.name = f"rank {opened['rank']}" if self.member is not None else opened["worker"]
        self.process = process_of(self.worker or "")  # the worker without the number of its lease
        self.day = 0  # the last one that is over for it
        self.lease: Lease | None = None  # granted, and kept until a question is answered
        self.epoch = -1  # of what is held back
        self.heard = time.monotonic()
