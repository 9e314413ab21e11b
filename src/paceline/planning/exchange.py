"""How rows should travel: push and pull, or collectives with rows or partial sums, operator by operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paceline.assembly import Job
from paceline.exchange.cost import Exchange as ExchangeKey
from paceline.exchange.cost import Load, Modes, Plan, Roles, choose
from paceline.planning.candidates import left
from paceline.planning.facts import Candidate, DataFacts
from paceline.planning.formulas import Algorithm, choose_algorithms
from paceline.runtimes.collective import make_plan

_PAGE = 4096  # the unit of memory of the choice


@dataclass(frozen=True, slots=True)
class Exchange:
    """key: what `cluster.exchange` should be; modes: of each part of a row; sent: bytes that a rank sends so for a
    gradient; rows: if all rows moved."""

    key: str
    modes: dict[str, str]
    sent: float
    rows: float


def exchange(candidate: Candidate, job: Job, data: DataFacts, byte_seconds: float, memory: float | None) -> Exchange:
    """The quickest exchange for the candidate by bytes. memory: of a worker, bytes; what does not fit is not taken.

    What the engine can be told are the algorithms of the note's rule 3.1: seconds on the wire against bytes held
    (values and their gradients). Parts of a row are not chosen apart: positions go once for all that are substituted.
    """
    b = candidate.local
    distinct, positions = data.distinct(b), data.batches[-1].positions / data.batches[-1].samples * b
    if not candidate.collective or candidate.workers < 2:
        moved = 2 * data.bytes(b, False) if candidate.workers > 1 else 0.0
        return Exchange("push_pull", {}, moved, moved)
    ranks = tuple(range(candidate.workers))
    layout, model = job.layout, job.replicas[0].model
    dense, load = len(job.schema.dense), Load(b, positions, distinct)
    compress = (None, 1.0) if job.config.compress is None else (job.config.compress.thinning, job.config.compress.sums)
    plan = make_plan(model, layout, dense, Roles(ranks, ranks), load, "auto", *compress)
    rows = plan.predicted["rows"]
    if memory is not None:
        keys: tuple[ExchangeKey, ...] = ("auto", "substitute", "rows")
        offers: dict[str, Plan] = {key: choose(plan.shape, key, load) for key in keys}
        ways = [
            Algorithm(key, offer.predicted["chosen"].bytes * byte_seconds, math.ceil(_held(offer, b, distinct) / _PAGE))
            for key, offer in offers.items()
        ]
        picked = choose_algorithms([ways], int(left(candidate, data, memory)) // _PAGE)
        plan = offers["rows" if picked is None else picked[0].name]
    sent = plan.predicted["chosen"]
    return Exchange(_key(plan.modes), {name: str(mode) for name, mode in plan.modes.items()},
                    sent.bytes, rows.bytes)  # fmt: skip


def _key(modes: Modes) -> str:
    moved = [mode == "rows" for mode in modes.values()]
    return "rows" if all(moved) else "auto" if any(moved) else "substitute"


def _held(plan: Plan, samples: int, distinct: float) -> float:
    """Bytes that a worker holds of rows or sums, and of their gradients, float32."""
    fields, numbers = plan.shape.fields, 0.0
    for part in plan.shape.parts:
        mode, width = plan.modes[part.name], part.width
        numbers += distinct * width if mode == "rows" else samples * (fields * width if mode == "fields" else width + 1)
    return 2 * 4 * numbers
