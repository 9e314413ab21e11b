"""How rows should travel: push and pull, or collectives with rows or partial sums, operator by operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paceline.assembly import Job
from paceline.exchange.cost import Exchange as ExchangeKey
from paceline.exchange.cost import Load, Modes, Roles, choose
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

    For each part of a row the modes of the engine's own cost rule are the algorithms of the note's rule 3.1: seconds on
    the wire against bytes held (values and their gradients). A mixture that `cluster.exchange` cannot ask for falls
    back to rows.
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
        widths = {part.name: part.width for part in plan.shape.parts}
        layers = []
        for name, ways in plan.by_part.items():
            held = {mode: _held(plan.shape.fields, widths[name], mode, b, distinct) for mode in ways}
            layers.append([Algorithm(m, size * byte_seconds, math.ceil(held[m] / _PAGE)) for m, size in ways.items()])
        picked = choose_algorithms(layers, int(left(candidate, data, memory)) // _PAGE)
        modes = None if picked is None else dict(zip(plan.by_part, (way.name for way in picked), strict=True))
        keys: tuple[ExchangeKey, ...] = ("auto", "substitute", "rows")  # what the engine can be told
        offers = [choose(plan.shape, key, load) for key in keys]
        plan = next((offer for offer in offers if dict(offer.modes) == modes), offers[-1])
    sent = plan.predicted["chosen"]
    return Exchange(_key(plan.modes), {name: str(mode) for name, mode in plan.modes.items()},
                    sent.id_bytes + sent.value_bytes, rows.id_bytes + rows.value_bytes)  # fmt: skip


def _key(modes: Modes) -> str:
    moved = [mode == "rows" for mode in modes.values()]
    return "rows" if all(moved) else "auto" if any(moved) else "substitute"


def _held(fields: int, width: int, mode: str, samples: int, distinct: float) -> float:
    """Bytes that a worker holds of a part: rows or sums, and their gradients, float32."""
    numbers = distinct * width if mode == "rows" else samples * (fields * width if mode == "fields" else width + 1)
    return 2 * 4 * numbers
