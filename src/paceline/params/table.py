"""One shard's embedding rows: a hash table from 64-bit ids to records [weights | slots] that grows as ids appear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paceline.kernels import halves, index, optimizers, rows
from paceline.kernels.pointers import BLOCK_ROWS
from paceline.params.blocks import Blocks
from paceline.params.delay import DelayAware, Late
from paceline.params.helpers import Helpers, no_helpers
from paceline.params.index import Index
from paceline.params.sparse import Clock, Floats, SparseOptimizer

Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int32]
Doubles = npt.NDArray[np.float64]

REDUCE = {"global_mean": rows.GLOBAL_MEAN, "per_id_mean": rows.PER_ID_MEAN, "sum": rows.SUM}
_NO_COUNTS: Counts = np.zeros(0, np.int32)
_NO_ROWS: Floats = np.zeros((0, 0), np.float32)
NO_LAW: Floats = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class RowGradient:
    """One gradient's rows: rows int64 [n] (distinct), gradients float32 [n, weights]; counts int32 [n]: updates that
    the rows had had when they were pulled (needed under a law); applied float32 [n, weights]: the sums of their applied
    gradients then (None: nothing was missed); the others as in `paceline.pace.Part`."""

    rows: Ints
    gradients: Floats
    share: float
    token: int
    weight: float = 1.0
    counts: Counts | None = None
    applied: Floats | None = None

    def counts_for(self, law: Floats) -> Counts:
        """The counts as the kernel takes them. Raises ValueError where a law needs them and there are none."""
        if self.counts is None:
            if law.shape[0]:
                raise ValueError("a law of row staleness needs the counts that the rows had when they were pulled")
            return _NO_COUNTS
        return self.counts


@dataclass(frozen=True, slots=True)
class RowBlock:
    """A stretch of rows as a checkpoint holds it: ids int64 [n], weights [n, w], slots [n, s], clocks int64 [n, 2]."""

    ids: Ints
    weights: Floats
    slots: Floats
    clocks: Ints


class Table:
    """Rows keyed by id. Not thread-safe: while its owner has it changed, nobody may do anything else with it
    (kernels release the GIL while they run); `look_up` and `pull` change nothing.

    bounds: float32 [weights]; a new row's weight j is uniform in [-bounds[j], bounds[j]) and depends on (seed, id, j)
    alone, whatever the order of arrival and the number of shards. balls: (begin, stop, radius) of weights that an
    update shortens to that norm, if they are longer, in the rows that it touches. helpers: threads that share an
    update's rows; its result is the same bits with any number of them. half: weights are kept in bfloat16, slots in
    float32, and what an update makes of a weight is rounded by chance (`paceline.kernels.halves`).
    """

    def __init__(
        self,
        bounds: Floats,
        optimizer: SparseOptimizer,
        seed: int,
        capacity: int = 1 << 16,
        balls: tuple[tuple[int, int, float], ...] = (),
        helpers: Helpers | None = None,
        half: bool = False,
    ) -> None:
        self.bounds = bounds
        self.optimizer = optimizer
        self.balls = balls
        self._helpers = helpers or no_helpers()
        self.seed = np.uint64(seed & (2**64 - 1))
        self.weights = int(bounds.shape[0])
        self.slots = optimizer.slots(self.weights)
        self._slot_start = optimizer.slot_start(self.weights)
        self._hyper = optimizer.hyper()
        self.half = half
        self._length = self.weights + self.slots
        self._records = Blocks((halves.stored(self.weights) if half else self.weights) + self.slots, np.float32)
        self._clocks = Blocks(2, np.int64)
        self._ids = Blocks(1, np.int64)
        self._index = Index(capacity)
        self._size = 0
        self.ages: Ints = np.zeros(64, np.int64)  # row staleness of all gradients, by its number of binary digits
        self.squares = 0.0  # squared norm of the last update's row gradients

    def __len__(self) -> int:
        return self._size

    @property
    def bytes(self) -> int:
        """Memory of records, clocks, ids and index."""
        return sum(b.bytes(self._size) for b in (self._records, self._clocks, self._ids)) + self._index.bytes

    def find(self, ids: Ints) -> Ints:
        """Rows of `ids` (int64 [n], distinct), -1 where there is none."""
        return self.look_up(ids)[0]

    def look_up(self, ids: Ints) -> tuple[Ints, int]:
        """The same, and for how many of them there is none. Changes nothing, so that several threads may do it."""
        found = np.empty(ids.shape[0], np.int64)
        return found, self._index.find(self._ids.addresses, self._size, ids, found)

    @property
    def growing(self) -> bool:
        """Whether a part of the index still lies in its old place, from where `find_or_insert` moves it."""
        return self._index.growing

    def find_or_insert(self, ids: Ints) -> Ints:
        """Rows of `ids` (int64 [n], distinct); unknown ids get a new row."""
        self._index.make_room(self._ids.addresses, self._size, ids.shape[0])
        for blocks in (self._records, self._clocks, self._ids):
            blocks.reserve(self._size + ids.shape[0])  # first of all: if memory runs out, nothing has changed
        found = np.empty(ids.shape[0], np.int64)
        added = self._index.find_or_insert(self._ids.addresses, self._size, ids, found)
        if added:
            new = ids[found >= self._size]
            self._start(new)
        return found

    def pull(self, row_numbers: Ints, ids: Ints) -> Floats:
        """Weights float32 [n, weights]; where a row number is -1, what a new row of that id would start from."""
        return self.pull_counted(row_numbers, ids)[0]

    def pull_counted(self, row_numbers: Ints, ids: Ints) -> tuple[Floats, Counts]:
        """The same, and the number of updates that each row has had, int32 [n]."""
        out = np.empty((row_numbers.shape[0], self.weights), np.float32)
        counts = np.empty(row_numbers.shape[0], np.int32)
        records, clocks = self._records, self._clocks
        where = (records.addresses, records.width, clocks.addresses, row_numbers, ids)
        rows.pull(*where, self.seed, self.bounds, self.half, out, counts)
        return out, counts

    def applied(self, row_numbers: Ints) -> Floats | None:
        """The sums of the gradients that rows have had so far, float32 [n, weights] (0 where a row number is -1), if
        the optimizer is `DelayAware`: what a pull of them brings along."""
        if not isinstance(self.optimizer, DelayAware):
            return None
        sums = np.empty((row_numbers.shape[0], self.weights), np.float32)
        rows.pull_sums(self._records.addresses, self._records.width, row_numbers, sums)
        return sums

    def apply(
        self,
        parts: list[RowGradient],
        clock: Clock,
        row_limit: int | None,
        reduce: int,
        law: Floats = NO_LAW,
        on_step: bool = False,
    ) -> int:
        """One update out of the parts' rows (see `rows.add_part` for the rule); `clock.updates` becomes the rows' last
        update. law: float32, what a row's gradient (or, on_step, its step) is multiplied by for each update that its
        row had since it was pulled (the last one beyond the end), or empty. Returns the number of rows updated."""
        if len(parts) == 1:
            distinct = parts[0].rows
            places = np.arange(distinct.shape[0], dtype=np.int32)
        else:
            distinct, places = unique(np.concatenate([part.rows for part in parts]))
        sums = np.zeros((distinct.shape[0], self.weights), np.float32)
        kept, steps = np.zeros(distinct.shape[0], np.float64), np.zeros(distinct.shape[0], np.float64)
        late = Late(*sums.shape) if isinstance(self.optimizer, DelayAware) else None
        limit, on = -1 if row_limit is None else row_limit, rows.ON_STEP if on_step else rows.ON_GRADIENT
        start = 0
        for part in parts:
            stop = start + part.rows.shape[0]
            place = (self._clocks.addresses, part.rows, places[start:stop])
            how = (part.counts_for(law), part.share, part.token, limit, reduce, part.weight, law, on)
            gradients = np.ascontiguousarray(part.gradients, np.float32)
            self._add(place, gradients, how, (sums, kept, steps))
            if late is not None and part.applied is not None:
                now = self.applied(part.rows)
                assert now is not None
                late.add(place, gradients, now - part.applied, how)
            start = stop
        rows.finish_sums(reduce, sums, kept)
        self.squares = float(np.vdot(sums, sums))
        late_rows = None if late is None else late.finish(reduce, kept)
        updated = self._update(distinct, sums, kept, steps, clock, late_rows)
        for begin, stop, radius in self.balls:
            ball = (self._records.addresses, self._records.width, distinct, kept, begin, stop, radius)
            rows.project_halves(*ball, self._spare()) if self.half else rows.project(*ball)
        return updated

    def blocks(self) -> Iterator[RowBlock]:
        """Every row, block by block, in order of row number; copies of one block at a time."""
        for start in range(0, self._size, BLOCK_ROWS):
            yield self.copy(np.arange(start, min(start + BLOCK_ROWS, self._size)))

    def changed(self, since: int, first: int) -> Ints:
        """Numbers of the rows, int64 [n] in ascending order, that were updated after version `since`, and of all from
        number `first` on. Rows keep their numbers, so these are what a copy made at `since` with `first` rows lacks."""
        numbers = np.empty(self._size, np.int64)  # memory is taken only for what is written
        count = rows.changed_rows(self._clocks.addresses, since, min(first, self._size), self._size, numbers)
        return numbers[:count]

    def copy(self, numbers: Ints) -> RowBlock:
        """The rows of these numbers (int64 [n], all below len(table)), in their order."""
        n = numbers.shape[0]
        block = RowBlock(
            np.empty(n, np.int64),
            np.empty((n, self.weights), np.float32),
            np.empty((n, self.slots), np.float32),
            np.empty((n, 2), np.int64),
        )
        records, clocks, ids = self._records, self._clocks.addresses, self._ids.addresses
        where = (records.addresses, records.width, clocks, ids, numbers, self.half)
        rows.copy_rows(*where, block.ids, block.weights, block.slots, block.clocks)
        return block

    def load(self, block: RowBlock) -> None:
        """Put rows back; ids that are there already are overwritten."""
        numbers = self.find_or_insert(block.ids)
        values = np.ascontiguousarray(np.concatenate([block.weights, block.slots], axis=1), np.float32)
        self._write(numbers, values, block.clocks)

    def _add(self, place: tuple[Any, ...], gradients: Floats, how: tuple[Any, ...], into: tuple[Any, ...]) -> None:
        """One part's rows. They are distinct, so stretches of them never meet in a sum."""
        clocks, numbers, places = place
        counts, *rest = how

        def add(start: int, stop: int) -> Ints:
            ages = np.zeros_like(self.ages)
            mine = slice(start, stop)
            rows.add_part(clocks, numbers[mine], places[mine], gradients[mine], counts[mine], *rest, ages, *into)
            return ages

        for ages in self._helpers.each(add, numbers.shape[0]):
            self.ages += ages

    def _write(self, numbers: Ints, values: Floats, clocks: Ints) -> None:
        where = (self._records.addresses, self._records.width, self._clocks.addresses, numbers)
        optimizers.write_records(*where, self.weights if self.half else 0, values, clocks)

    def _spare(self) -> Floats:
        """Where a kernel works on a row of bfloat16 weights; empty where rows are float32."""
        return np.empty(self._length if self.half else 0, np.float32)

    def _update(
        self, distinct: Ints, sums: Floats, kept: Doubles, steps: Doubles, clock: Clock, late: Late | None
    ) -> int:
        records, clocks, width = self._records.addresses, self._clocks.addresses, self._records.width
        if self.optimizer.kind >= 0:
            kind, periods, hyper = self.optimizer.kind, self.optimizer.periods(clock), self._hyper
            version = clock.updates
            overlap, missed = (_NO_ROWS, _NO_ROWS) if late is None else (late.overlap, late.missed)

            def update(start: int, stop: int) -> int:
                mine = slice(start, stop)
                chosen = (distinct[mine], sums[mine], kept[mine], steps[mine], version, periods, hyper)
                more = (overlap[mine], missed[mine], self._spare())
                return int(optimizers.update_rows(kind, records, width, clocks, *chosen, *more))

            return sum(self._helpers.each(update, distinct.shape[0]))
        chosen = kept > 0
        numbers, grads = distinct[chosen], sums[chosen]
        values = np.empty((numbers.shape[0], self._length), np.float32)
        times = np.empty((numbers.shape[0], 2), np.int64)
        optimizers.read_records(records, width, clocks, numbers, self.weights if self.half else 0, values, times)
        before = values[:, : self.weights].copy()
        of_weights, of_slots = values[:, : self.weights], values[:, self.weights :]
        if late is not None and isinstance(self.optimizer, DelayAware):
            self.optimizer.update_late(of_weights, of_slots, grads, late.overlap[chosen], late.missed[chosen], clock)
        else:
            self.optimizer.update(of_weights, of_slots, grads, clock)
        part = (steps[chosen] / kept[chosen]).astype(np.float32)[:, None]
        if (part < 1).any():
            values[:, : self.weights] = np.where(
                part < 1, before + part * (values[:, : self.weights] - before), values[:, : self.weights]
            )
        times[:, 0] = clock.updates
        times[:, 1] += 1
        self._write(numbers, values, times)
        return int(numbers.shape[0])

    def _start(self, ids: Ints) -> None:
        rows.start_rows(
            self._records.addresses,
            self._records.width,
            self._clocks.addresses,
            self._ids.addresses,
            ids,
            self._size,
            self.seed,
            self.bounds,
            self._slot_start,
            self._spare(),
        )
        self._size += ids.shape[0]


def unique(ids: Ints) -> tuple[Ints, npt.NDArray[np.int32]]:
    """(distinct ids in order of first appearance int64 [m], inverse int32 [n])."""
    distinct = np.empty(ids.shape[0], np.int64)
    inverse = np.empty(ids.shape[0], np.int32)
    scratch = np.zeros(1 << max(4, (2 * ids.shape[0] - 1).bit_length()), np.int32)
    count = index.unique(ids, distinct, inverse, scratch)
    return distinct[:count], inverse


__all__ = ["BLOCK_ROWS", "REDUCE", "RowBlock", "RowGradient", "Table", "unique"]
