"""What each way of exchanging rows costs, and which is cheapest. Pure: the same facts give the same choice everywhere.

Source: the byte model of DES (Rong et al., arXiv 1909.04823), reconstructed: bytes *sent* by a rank in a step, forward
and backward. A part of the rows is exchanged in one of three modes:

- rows: distinct rows go to the worker, their gradients come back. 2 U w numbers, of which others hold a share.
- fields: shards send pooled (sample, field) sums, zero where they hold nothing, gradients come back. 2 (N-1) b F w.
- partials: shards send the partial sums of every operator that reads the part. 2 (N-1) b K; K = d + 1 for FM + linear.

All operators that read a part take it in the same mode, since who moves the rows for one has them for the others.
Beside these values go a batch's distinct ids, whatever the modes, and, once anything is substituted, where in the batch
they stand. The choice is by all bytes together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from paceline.exchange.masking import kept_numbers
from paceline.exchange.thin import thin_bytes
from paceline.models.readers import Reader

Mode = Literal["rows", "fields", "partials"]
Exchange = Literal["auto", "rows", "substitute"]
Placement = Literal["hash", "field"]
HEADER = 48  # bytes before a batch's ids: its samples, gradient number and distinct ids; known and new ones, and a mark
_RICE = 0.2  # bits that a gap takes beyond the entropy of a random set


@dataclass(frozen=True, slots=True)
class RowPart:
    """A part of the rows: its width, and the operators that read it (None: the model needs the rows themselves)."""

    name: str
    width: int
    readers: tuple[Reader, ...] | None


@dataclass(frozen=True, slots=True)
class Roles:
    """Which ranks hold a shard (in the order of the shards) and which have a worker; a rank may do both."""

    shards: tuple[int, ...]
    workers: tuple[int, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({*self.shards, *self.workers}))


@dataclass(frozen=True, slots=True)
class Load:
    """A worker's batch: samples, positions (ids, repeats counted) and distinct ids. fresh: those of them that it never
    named before (None: all, as in a group's first step); listed: how many it had named by then; bits: that tell where
    a position is, measured on such a batch (None: estimated, rather above what it is)."""

    samples: float
    positions: float
    distinct: float
    fresh: float | None = None
    listed: float = 0.0
    bits: float | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """What does not change from step to step. singles, bags: fields with one id and with several; dense: how many dense
    parameters each shard holds; value: bytes of a number; placement: of ids on shards; kept: how many entries leave of
    the gradient of each shard's dense parameters, where workers hold back the others (None: all); sums: share of a
    sample's partial sums that is sent."""

    parts: tuple[RowPart, ...]
    roles: Roles
    singles: int
    bags: int
    dense: tuple[int, ...]
    value: int = 4
    placement: Placement = "hash"
    kept: tuple[int, ...] | None = None
    sums: float = 1.0

    @property
    def fields(self) -> int:
        return self.singles + self.bags


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes that a rank sends in a step, by kind. Values: rows, sums (partial sums, and their gradients), sums_places
    (where they stand, if not all are sent), dense (parameters, and their gradients if these are whole), dense_gradients
    and dense_gradients_places (what leaves of them, and where it stands, if they are not), pieces (gradients of
    operators' parameters), norms."""

    ids: Mapping[str, float]
    values: Mapping[str, float]

    @property
    def id_bytes(self) -> float:
        return sum(self.ids.values())

    @property
    def value_bytes(self) -> float:
        return sum(self.values.values())

    @property
    def bytes(self) -> float:
        return self.id_bytes + self.value_bytes


Modes = Mapping[str, Mode]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model's rows are exchanged. modes: of each part; predicted: what an average rank sends in a step as it was
    chosen ("chosen"), with all rows moved ("rows"), with the cheapest substitution ("substitute") and by push and pull
    ("push_pull"); by_part: value bytes of each part alone in each mode that it can take, that is without ids and
    positions, which belong to no part; load: of the batches that it was made for."""

    shape: Shape
    modes: Modes
    predicted: Mapping[str, Sent]
    by_part: Mapping[str, Mapping[Mode, float]]
    load: Load


def whole_bags(part: RowPart, modes: Modes, shape: Shape) -> bool:
    """Whether bags are summed field by field, because an operator of the part needs them whole on one shard."""
    return modes[part.name] == "partials" and shape.bags > 0 and not all(r.splits for r in part.readers or ())


def numbers(shape: Shape, modes: Modes) -> int:
    """K: how many numbers of a sample a shard sends as sums."""
    return sum(segments(shape, modes))


def segments(shape: Shape, modes: Modes) -> list[int]:
    """The same, one by one in the order of the columns: sums over fields of each part that has them, each reader's own
    numbers, and the last numbers of each group's readers, which travel as one."""
    sums, own, groups = list[int](), list[int](), set[int]()
    for part in shape.parts:
        if modes[part.name] == "fields":
            sums.append(shape.fields * part.width)
        elif modes[part.name] == "partials":
            sums.append(shape.bags * part.width if whole_bags(part, modes, shape) else 0)
            own += [reader.numbers - (reader.group >= 0) for reader in part.readers or ()]
            groups |= {reader.group for reader in part.readers or ()} - {-1}
    return [n for n in (*sums, *own, *(1 for _ in groups)) if n]


def parameters(shape: Shape, modes: Modes) -> int:
    """How many dense parameters the shards need for the partials that they compute."""
    return sum(r.parameters for p in shape.parts if modes[p.name] == "partials" for r in p.readers or ())


def sent(shape: Shape, modes: Modes, loads: Mapping[int, Load], rank: int) -> Sent:
    """What `rank` sends in a step in which the ranks that `loads` names have a batch each.

    Under placement by hash (what the engine does) each shard's gradient of the parameters in its partials goes to the
    worker whose batch it is of: a gradient is kept by its number until an update weighs it. Under placement by field
    the owner of a field keeps those parameters, and a pooled cell comes from one shard alone.
    """
    shards, held = len(shape.roles.shards), rank in shape.roles.shards
    others = {w: load for w, load in loads.items() if w != rank}
    me, elsewhere = loads.get(rank, Load(0, 0, 0)), shards - held
    samples = held * sum(load.samples for load in others.values()) + me.samples * elsewhere
    distinct = (held * sum(load.distinct for load in others.values()) + me.distinct * elsewhere) / shards
    moved = sum(part.width for part in shape.parts if modes[part.name] == "rows")
    sums, cells = numbers(shape, modes), 0
    by_field = shape.placement == "field"
    if by_field:
        cells = sum(shape.fields * part.width for part in shape.parts if modes[part.name] == "fields")
    needed, e = parameters(shape, modes), shape.value
    substituted = any(mode != "rows" for mode in modes.values())
    projects = needed > 0 and not by_field
    receivers = ({*loads, *shape.roles.shards} if projects and loads else {*loads}) - {rank}
    keep = 1 - needed / max(sum(shape.dense), 1) if by_field else 1
    own = shape.dense[shape.roles.shards.index(rank)] if held else 0
    pushed = (sum(shape.dense) - own) if rank in loads else 0
    values = {
        "rows": e * moved * distinct,
        "sums": e * ((sums - cells) * samples + cells * samples / shards),
        "dense": e * keep * (own * len(receivers) + pushed * (shape.kept is None)),
        "pieces": e * needed * len(others) * (held and projects),
        "norms": 4 * len(others) * (held and substituted),
    }
    kept_sums = kept_numbers(shape.sums, segments(shape, modes))
    if kept_sums is not None and not by_field:
        there = [thin_bytes(load.samples * sums, load.samples * kept_sums) for load in others.values() if held]
        back = 4 * kept_sums * me.samples * elsewhere
        values |= {"sums": sum(t[0] for t in there) + back, "sums_places": sum(t[1] for t in there)}
    if shape.kept is not None and rank in loads:
        slices = zip(shape.roles.shards, shape.dense, shape.kept, strict=True)
        up = [thin_bytes(size, kept) for shard, size, kept in slices if shard != rank]
        values |= {"dense_gradients": sum(u[0] for u in up), "dense_gradients_places": sum(u[1] for u in up)}
    ids = {"ids": (id_bytes(me) / shards + HEADER) * elsewhere * (rank in loads)}
    if substituted and rank in loads:
        ids["positions"] = elsewhere * position_bytes(shape, me)
    return Sent(ids, {kind: float(n) for kind, n in values.items() if n})


def id_bytes(load: Load) -> float:
    """What names a batch's distinct ids to all shards: new ones in full, the others as a random set of those listed.
    Where frequent ids have low numbers, as they mostly do, it takes less."""
    fresh = load.distinct if load.fresh is None else load.fresh
    known, listed = load.distinct - fresh, max(load.listed, load.distinct - fresh, 1)
    share = known / listed
    bits = -sum(listed * p * math.log2(p) for p in (share, 1 - share) if p > 0)
    return 8 * fresh + (bits + _RICE * known) / 8


def position_bytes(shape: Shape, load: Load) -> float:
    """What tells one shard where its ids stand in a batch; without the load's `bits` an estimate, if every field has
    equally many ids and all take as many bits."""
    shards, fields = len(shape.roles.shards), max(shape.fields, 1)
    if load.bits is not None:
        return load.positions * load.bits / 8 / shards
    index = math.ceil(math.log2(max(load.distinct / shards / fields, 1)))
    length = max(load.positions / max(load.samples, 1) - shape.singles, 0) / max(shape.bags, 1)
    counts = shape.singles * (shards > 1) + shape.bags * math.ceil(math.log2(2 + 2 * length / shards))
    return (load.positions / shards * index + load.samples * counts) / 8 + 11 * shape.fields


def mean_sent(shape: Shape, modes: Modes, load: Load) -> Sent:
    """What an average rank sends in a step in which every worker has a batch like `load`."""
    ranks = shape.roles.ranks
    loads = dict.fromkeys(shape.roles.workers, load)
    each = [sent(shape, modes, loads, rank) for rank in ranks]
    return Sent(_mean([s.ids for s in each]), _mean([s.values for s in each]))


def push_pull(shape: Shape, load: Load) -> Sent:
    """The same by push and pull: for each distinct row of another process its id once, the row and its gradient."""
    moved: Modes = {part.name: "rows" for part in shape.parts}
    found = mean_sent(shape, moved, load)
    held = sum(w in shape.roles.shards for w in shape.roles.workers)
    away = len(shape.roles.workers) - held / len(shape.roles.shards)
    return Sent({"ids": 8 * load.distinct * away / len(shape.roles.ranks)}, found.values)


def choose(shape: Shape, exchange: Exchange, load: Load) -> Plan:
    """The plan for batches like `load`. exchange: `rows` moves all rows, `substitute` none, `auto` takes whichever of
    all mixtures sends the fewest bytes of values, ids and positions together, and rows where they cost as much."""
    moved: Modes = {part.name: "rows" for part in shape.parts}
    mixtures = list(_mixtures(shape.parts, ("rows", "fields", "partials")))
    predicted = {"rows": mean_sent(shape, moved, load)}
    substituted = _cheapest(shape, _mixtures(shape.parts, ("fields", "partials")), load)
    predicted["substitute"] = mean_sent(shape, substituted, load)
    match exchange:
        case "rows":
            modes = moved
        case "substitute":
            modes = substituted
        case "auto":
            modes = _cheapest(shape, mixtures, load)
    predicted |= {"push_pull": push_pull(shape, load), "chosen": mean_sent(shape, modes, load)}
    by_part: dict[str, dict[Mode, float]] = {}
    for part in shape.parts:
        # Dense parameters take the same bytes in every mode.
        alone = replace(shape, parts=(part,), dense=(0,) * len(shape.dense), kept=None)
        by_part[part.name] = {
            mixture[part.name]: mean_sent(alone, mixture, load).value_bytes
            for mixture in _mixtures((part,), ("rows", "fields", "partials"))
        }
    return Plan(shape, modes, predicted, by_part, load)


def break_even(fields: int, dim: int, samples: int, numbers: int, hidden: int = 0) -> float:
    """N*: at how many ranks substitution costs as much as moving one row per field and sample, and all-reducing the
    gradient of a first layer of width `hidden` (F d (b + H) / (b K))."""
    return fields * dim * (samples + hidden) / (samples * numbers)


def _mixtures(parts: Sequence[RowPart], modes: Iterable[Mode]) -> Iterable[dict[str, Mode]]:
    able = [[m for m in modes if m != "partials" or part.readers is not None] for part in parts]
    for mixture in itertools.product(*able):
        yield dict(zip((part.name for part in parts), mixture, strict=True))


def _cheapest(shape: Shape, mixtures: Iterable[Modes], load: Load) -> Modes:
    return min(mixtures, key=lambda modes: mean_sent(shape, modes, load).bytes)


def _mean(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    kinds = {kind: None for found in each for kind in found}
    return {kind: sum(found.get(kind, 0.0) for found in each) / len(each) for kind in kinds}
