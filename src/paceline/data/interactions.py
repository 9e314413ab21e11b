"""Files of interactions to arrays: who gave which item what feedback, what is trained on and what is held out.

The whole set is held in memory, since an epoch is a shuffle of it and a negative must be known to be one; what that
takes is in docs/design/0006-mrmn.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from paceline.batch import BadRow, Ints
from paceline.data.chunks import Chunk
from paceline.data.encode import hash_column
from paceline.data.parquet import read_parquet
from paceline.data.text import Dialect, read_delimited
from paceline.errors import DataError
from paceline.kernels import hashing
from paceline.kernels import interactions as kernels
from paceline.schema import Interactions

Small = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]


@dataclass(slots=True)
class Rows:
    """Interactions as they were read: 64-bit ids of users and items [n], numbers of types [n], times (or zeros) [n]."""

    users: Ints
    items: Ints
    types: Small
    times: Doubles
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Lists:
    """Distinct items of each (type, user); see `paceline.kernels.interactions`."""

    starts: Ints
    found: Small


@dataclass(frozen=True, slots=True)
class Tests:
    """Interactions to be ranked: numbers of user, item and type, int64 [n] each."""

    users: Ints
    items: Ints
    types: Ints


@dataclass(frozen=True, slots=True)
class InteractionSet:
    """user_ids, item_ids: int64, distinct; users, items int32 [n] and types: of what is trained on, by number;
    observed: all feedback that was not held out, whether it is trained on or not; weaker: of each (type, user) the
    items that have weaker feedback only, or None if nobody asked for them; bad: rows that were left out."""

    user_ids: Ints
    item_ids: Ints
    users: Small
    items: Small
    types: Small
    observed: Lists
    weaker: Lists | None
    tests: Tests
    bad: tuple[BadRow, ...]

    def rows_of(self, users: Ints | Small, types: Ints | Small) -> Ints:
        """The numbers of their lists, int64 [n]."""
        return types.astype(np.int64) * len(self.user_ids) + users


def read_rows(files: list[str], spec: Interactions, dialect: Dialect | None, skip_bad_rows: bool, timed: bool) -> Rows:
    """Every interaction of the files (Parquet if there is no dialect). Raises DataError naming file and line."""
    columns = [spec.user, spec.item, *([] if spec.type is None else [spec.type])]
    if timed and spec.time is not None:
        columns.append(spec.time)
    needed = tuple(columns)
    parts: list[Rows] = []
    bad: list[BadRow] = []
    for file, path in enumerate(files):
        chunks = read_parquet(path, file, needed) if dialect is None else read_delimited(path, file, dialect, needed)
        empty = True
        for chunk in chunks:
            empty = empty and chunk.rows == 0
            part = _rows(chunk, spec, timed)
            if part.bad and not skip_bad_rows:
                row = part.bad[0]
                raise DataError(
                    f"{row.file}, line {row.line}: {row.reason}. Mend the row, or set data.on_bad_row: skip"
                )
            parts.append(part)
            bad += part.bad
        if empty:
            raise DataError(f"{path}: the file has no rows; take it out of data.days or interactions.test")
    joined = [np.concatenate([getattr(p, name) for p in parts]) for name in ("users", "items", "types", "times")]
    return Rows(joined[0], joined[1], joined[2], joined[3], bad)


def _rows(chunk: Chunk, spec: Interactions, timed: bool) -> Rows:
    """The good rows of a chunk, and why the others are not."""
    n = chunk.rows
    reasons = dict(chunk.bad)
    ids = np.empty((2, n), np.int64)
    for out, column in zip(ids, (spec.user, spec.item), strict=True):
        hash_column(chunk, column, out)
        for r in np.flatnonzero(out == hashing.missing_id(column)):
            reasons.setdefault(int(r), f"the column {column!r} is empty; an interaction needs a user and an item")
    types = np.zeros(n, np.int32)
    if spec.type is not None:
        named = np.empty(n, np.int64)
        hash_column(chunk, spec.type, named)
        seed = hashing.field_seed(spec.type)
        known = np.array([hashing.text_id(name.encode(), int(seed)) for name in spec.types], np.uint64).view(np.int64)
        matches = named[:, None] == known[None, :]
        types = matches.argmax(1).astype(np.int32)
        for r in np.flatnonzero(~matches.any(1)):
            if int(r) not in reasons:
                told = repr(chunk.texts(spec.type).text(int(r))[:60])
                reasons[int(r)] = f"the type {told} is none of interactions.types ({', '.join(spec.types)})"
    times: Doubles = np.zeros(n, np.float64)
    if timed and spec.time is not None:
        times, state = chunk.numbers(spec.time)
        for r in np.flatnonzero(state):
            reasons.setdefault(int(r), f"the time {spec.time!r} is missing or no finite number")
    bad = [BadRow(chunk.path, chunk.line(r), reasons[r]) for r in sorted(reasons)]
    good: npt.NDArray[np.bool_] = np.ones(n, bool)
    good[list(reasons)] = False
    return Rows(ids[0][good], ids[1][good], types[good], times[good], bad)


def make_set(rows: Rows, tests: Rows | None, spec: Interactions, most: int) -> InteractionSet:
    """Number users and items, hold out, and list what was observed. most: test interactions of each type that are kept
    (which ones is drawn). Raises DataError if nothing is left to train on or a negative cannot be drawn."""
    if len(rows.users) == 0:
        raise DataError("data.days: no usable interaction in the files")
    none = np.zeros(0, np.int64)
    given = (tests.users, tests.items) if tests is not None else (none, none)
    user_ids, users = _number(rows.users, given[0])
    item_ids, items = _number(rows.items, given[1])
    n = len(rows.users)
    types = rows.types
    if tests is not None:
        held = Tests(users[n:].astype(np.int64), items[n:].astype(np.int64), tests.types.astype(np.int64))
        users, items = users[:n], items[:n]
    else:
        kept, held = _hold_out(users, items, rows, spec, len(user_ids), len(item_ids))
        users, items, types = users[kept], items[kept], types[kept]
    observed = _lists(users, items, types, len(spec.types), len(user_ids))
    longest = int(np.diff(observed.starts).max(initial=0))
    if longest >= len(item_ids):
        name = spec.types[int(np.diff(observed.starts).argmax()) // len(user_ids)]
        raise DataError(
            f"data.days: a user has feedback {name!r} on each of the {len(item_ids):,} items, so that no negative can"
            " be drawn; leave that user out, or add the items that have no feedback"
        )
    weaker = _weaker(observed, spec, len(user_ids)) if spec.harder > 0 else None
    trained = np.isin(types, spec.trained)
    if not trained.any():
        raise DataError(f"data.days: no interaction of the types {[spec.types[t] for t in spec.trained]} to train on")
    return InteractionSet(
        user_ids, item_ids, users[trained], items[trained], types[trained], observed, weaker,
        _fewer(held, most, spec.seed), tuple(rows.bad + (tests.bad if tests is not None else [])),
    )  # fmt: skip


def _number(ids: Ints, more: Ints) -> tuple[Ints, Small]:
    """(distinct ids in ascending order, number of each of `ids` and then of `more`)."""
    distinct, numbers = np.unique(np.concatenate([ids, more]), return_inverse=True)
    return distinct, numbers.reshape(-1).astype(np.int32)


def _lists(users: Small, items: Small, types: Small, type_count: int, user_count: int) -> Lists:
    rows = types.astype(np.int64) * user_count + users
    order = np.lexsort((items, rows))
    starts, found = np.zeros(type_count * user_count + 1, np.int64), np.empty(len(rows), np.int32)
    used = kernels.fill_lists(starts, rows[order], items[order], found)
    return Lists(starts, found[:used])


def _pairs(lists: Lists, user_count: int) -> tuple[Ints, Ints, Small]:
    """(type, user, item) of everything in lists."""
    rows = np.repeat(np.arange(len(lists.starts) - 1), np.diff(lists.starts))
    return rows // user_count, rows % user_count, lists.found


def _weaker(observed: Lists, spec: Interactions, user_count: int) -> Lists:
    """Of each (type, user) the items with feedback of weaker types and none of this one."""
    types, users, items = _pairs(observed, user_count)
    found: list[tuple[Ints, Small, Ints]] = []
    for strong in range(1, len(spec.types)):
        below = types < strong
        found.append((users[below], items[below], np.full(int(below.sum()), strong, np.int64)))
    if not found:
        return Lists(np.zeros_like(observed.starts), np.zeros(0, np.int32))
    of, its, strong_types = (np.concatenate([part[i] for part in found]) for i in range(3))
    width = int(items.max(initial=0)) + 1
    own = np.isin((strong_types * user_count + of) * width + its, (types * user_count + users) * width + items)
    kept = ~own
    return _lists(
        of[kept].astype(np.int32), its[kept].astype(np.int32), strong_types[kept].astype(np.int32), len(spec.types),
        user_count,
    )  # fmt: skip


def _hold_out(
    users: Small, items: Small, rows: Rows, spec: Interactions, user_count: int, item_count: int
) -> tuple[npt.NDArray[np.bool_], Tests]:
    """(rows that stay, what is held out): see `paceline.schema.Holdout`."""
    kept: npt.NDArray[np.bool_] = np.ones(len(users), bool)
    none = np.zeros(0, np.int64)
    if spec.holdout is None:
        return kept, Tests(none, none, none)
    pairs = users.astype(np.int64) * item_count + items
    parts: list[tuple[Ints, Ints]] = []
    for t in spec.holdout.types:
        mine = np.flatnonzero(rows.types == t)
        if spec.holdout.last:
            order = mine[np.lexsort((mine, rows.times[mine], users[mine]))]
        else:  # by a draw of the pair, so that neither the order of rows nor other types matter
            keys = np.empty(len(mine), np.uint64)
            kernels.pair_keys(spec.seed, t, rows.users[mine], rows.items[mine], keys)
            order = mine[np.lexsort((keys, users[mine]))]
        ends = np.flatnonzero(np.append(users[order][1:] != users[order][:-1], True)) if len(order) else none
        chosen = order[ends]
        several = np.bincount(np.unique(pairs[mine]) // item_count, minlength=user_count) >= 2
        chosen = chosen[several[users[chosen]]]
        parts.append((pairs[chosen], np.full(len(chosen), t, np.int64)))
        gone = np.isin(pairs, pairs[chosen])
        kept &= ~gone if spec.holdout.all_types else ~(gone & (rows.types == t))
    of, types = (np.concatenate([part[i] for part in parts]) for i in range(2))
    return kept, Tests(of // item_count, of % item_count, types)


def _fewer(tests: Tests, most: int, seed: int) -> Tests:
    """At most so many of each type, drawn."""
    keys = np.empty(len(tests.users), np.uint64)
    kernels.order_keys(seed, -1, keys)  # of no epoch
    chosen = [np.sort(mine[np.argsort(keys[mine], kind="stable")[:most]])
              for t in np.unique(tests.types) for mine in [np.flatnonzero(tests.types == t)]]  # fmt: skip
    at = np.concatenate([np.zeros(0, np.int64), *chosen])
    return Tests(tests.users[at], tests.items[at], tests.types[at])
