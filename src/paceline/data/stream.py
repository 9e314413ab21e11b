"""A day of the log as batches: one thread reads and cuts rows, others hash, and batches come out in order.

Memory is bounded by the queue: at most DEPTH chunks of a few MB are under way, whatever the size of the day.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from paceline.batch import BadRow, Batch, Cursor, Ints, Span
from paceline.data.chunks import Chunk
from paceline.data.encode import Block, encode, join_bags, piece
from paceline.data.moments import Moments, add, dense_inputs, no_moments
from paceline.data.parquet import read_parquet
from paceline.data.share import Share
from paceline.data.text import Dialect, read_delimited, read_libsvm, without_absent_label
from paceline.errors import DataError
from paceline.schema import Schema
from paceline.threads import SureThread

DEPTH = 6
ENCODERS = 2
FIRST = Cursor()


@dataclass(frozen=True, slots=True)
class Log:
    """How to read the files. dialect: for delimited text; None for parquet and libsvm.

    labelled: the label column has to be there; if False it may be absent (labels are then NaN) and batches have places.
    """

    format: str
    schema: Schema
    dialect: Dialect | None
    skip_bad_rows: bool = False
    labelled: bool = True

    def chunks(self, path: str, file: int, start: int) -> Iterator[Chunk]:
        """The chunks of a file; those wholly before row `start` may be left out."""
        label = self.schema.label.column
        if self.format == "libsvm":
            return read_libsvm(path, file)
        if self.format == "parquet":
            optional = "" if self.labelled else label
            return read_parquet(path, file, self.schema.columns, start, optional)
        assert self.dialect is not None
        dialect, needed = self.dialect, self.schema.columns
        if not self.labelled:
            dialect = without_absent_label(path, dialect, label)
            needed = tuple(c for c in needed if c != label)
        return read_delimited(path, file, dialect, needed)

    def batches(self, files: list[str], plan: Plan) -> Generator[Batch]:
        """See `day_batches`."""
        begin = min([plan.start, *(span.start for span in plan.again)])
        share = plan.share
        if share is None:
            blocks = _Ahead(lambda: _blocks(self, files, begin))
        else:
            blocks = _Ahead(lambda: (share.of(block, plan.day) for block in _blocks(self, files, begin)))
        try:
            yield from _held(_Cutter(self, plan), blocks, files, plan)
        finally:
            blocks.close()


class Source(Protocol):
    """What gives the batches of a day: a `Log`, or interactions with what is drawn beside them."""

    @property
    def schema(self) -> Schema: ...

    def batches(self, files: list[str], plan: Plan) -> Generator[Batch]: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What to read of a day: first the spans in `again` (batches of a checkpoint that were not settled), each as one
    batch, then batches of `size` rows from `start` on; moments: the running moments at `start`, None at a first start.

    frozen: do not learn moments (evaluation); share: leave out the rows of other groups.
    """

    day: int
    size: int
    start: Cursor = FIRST
    moments: Moments | None = None
    again: tuple[Span, ...] = ()
    frozen: bool = False
    share: Share | None = None


def day_batches(source: Source, files: list[str], plan: Plan) -> Generator[Batch]:
    """The batches of a day, in order. The last one may be short. Reading goes on ahead in other threads.

    Raises DataError for what is wrong with a file, or with a row unless bad rows are skipped.
    """
    return source.batches(files, plan)


def _blocks(log: Log, files: list[str], begin: Cursor) -> Iterator[Block]:
    """Encoded blocks in order; encoding runs in a pool."""
    with ThreadPoolExecutor(ENCODERS, thread_name_prefix="paceline-encode") as pool:
        under_way: list[Future[Block]] = []
        try:
            for file, path in enumerate(files[begin.file :], begin.file):
                start = begin.row if file == begin.file else 0
                empty = True
                for chunk in log.chunks(path, file, start):
                    empty = empty and chunk.rows == 0
                    if chunk.first + chunk.rows <= start:
                        continue
                    under_way.append(pool.submit(encode, chunk, log.schema, log.labelled))
                    if len(under_way) > ENCODERS:
                        yield under_way.pop(0).result()
                if empty:
                    raise DataError(f"{path}: the file has no rows; take it out of data.days")
            while under_way:
                yield under_way.pop(0).result()
        finally:
            for future in under_way:
                future.cancel()


class _Ahead:
    """Runs an iterator of blocks in a thread, a few blocks ahead; its errors are raised where blocks are taken."""

    def __init__(self, make: Callable[[], Iterator[Block]]) -> None:
        self._queue: queue.Queue[Block | BaseException | None] = queue.Queue(DEPTH)
        self._closed = threading.Event()
        self._make = make
        self._thread = SureThread(target=self._run, name="paceline-read", daemon=True)
        self._started = False

    def _put(self, item: Block | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _run(self) -> None:
        source = self._make()
        try:
            for block in source:
                if not self._put(block):
                    return
            self._put(None)
        except BaseException as error:  # handed over, not swallowed
            self._put(error)
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    def __iter__(self) -> Iterator[Block]:
        if not self._started:
            self._started = True
            self._thread.start()
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop reading; called when the day is done or left early."""
        self._closed.set()
        if self._started:
            self._thread.join()


class _Cutter:
    """Blocks to batches: rows outside the plan are passed over, the others cut where the plan says.

    A batch's span reaches from the end of the one before to its next good row, so bad rows belong to exactly one span.
    """

    def __init__(self, log: Log, plan: Plan) -> None:
        self._log = log
        self._plan = plan
        self._again = list(plan.again)
        self._start = plan.start
        self._moments = plan.moments if plan.moments is not None else no_moments(len(log.schema.dense))
        self._pieces: list[Block] = []
        self._rows = 0
        self.skipped: list[BadRow] = []

    def cut(self, blocks: Iterable[Block]) -> Iterator[Batch]:
        """The batches; afterwards `skipped` holds bad rows behind the last one."""
        stop = self._start
        for block in blocks:
            at, bad = 0, list(block.bad)
            while True:
                span = self._again[0] if self._again else None
                begin = span.start if span else self._plan.start
                at = max(at, _place(block, begin))
                end = _place(block, span.stop) if span else min(len(block), at + self._plan.size - self._rows)
                stop = Cursor(block.file, int(block.rows[end]) if end < len(block) else block.stop)
                self._note_bad(bad, begin, min(stop, span.stop) if span else stop, block.file)
                if end > at:
                    self._pieces.append(piece(block, at, end))
                    self._rows += end - at
                    at = end
                if not (stop >= span.stop if span else self._rows == self._plan.size):
                    break
                if span:
                    self._again.pop(0)
                if self._rows:
                    yield self._batch(span or Span(self._plan.day, self._start, stop, self._moments))
        if self._rows:
            span = self._again.pop(0) if self._again else None
            yield self._batch(span or Span(self._plan.day, self._start, stop, self._moments))

    def _note_bad(self, bad: list[tuple[int, BadRow]], begin: Cursor, stop: Cursor, file: int) -> None:
        while bad and Cursor(file, bad[0][0]) < stop:
            place, row = bad.pop(0)
            if Cursor(file, place) < begin:
                continue
            if not self._log.skip_bad_rows:
                raise DataError(
                    f"{row.file}, line {row.line}: {row.reason}. Mend the row, or set data.on_bad_row: skip"
                )
            self.skipped.append(row)

    def _batch(self, span: Span) -> Batch:
        pieces, self._pieces, self._rows = self._pieces, [], 0
        skipped, self.skipped = tuple(self.skipped), []
        numbers = _join([p.numbers for p in pieces])
        after = span.moments if self._plan.frozen else add(span.moments, numbers)
        if span.start == self._start:
            self._start, self._moments = span.stop, after
        groups = [p.groups for p in pieces if p.groups is not None]
        return Batch(
            _join([p.labels for p in pieces]),
            _join([p.ids for p in pieces]),
            tuple(join_bags([p.bags[i] for p in pieces]) for i in range(len(pieces[0].bags))),
            dense_inputs(self._log.schema, numbers, after),
            _join(groups) if groups else None,
            span,
            Span(span.day, self._start, self._start, self._moments),
            skipped,
            None if self._log.labelled else _join([_places(p) for p in pieces]),
        )


def _held(cutter: _Cutter, blocks: Iterable[Block], files: list[str], plan: Plan) -> Iterator[Batch]:
    """The batches, each held back until the next is there, so that bad rows at the end go with the last one."""
    held: Batch | None = None
    for batch in cutter.cut(blocks):
        if held is not None:
            yield held
        held = batch
    if held is not None:
        yield replace(held, skipped=(*held.skipped, *cutter.skipped))
    elif plan.start == FIRST:
        why = f" ({len(cutter.skipped):,} bad rows; the first: {cutter.skipped[0].reason})" if cutter.skipped else ""
        raise DataError(f"{', '.join(files)}: day {plan.day} has no usable row{why}")


def _place(block: Block, cursor: Cursor) -> int:
    """How many rows of the block lie before `cursor`."""
    if block.file != cursor.file:
        return len(block) if block.file < cursor.file else 0
    return int(np.searchsorted(block.rows, cursor.row))


def _places(block: Block) -> Ints:
    return np.stack([np.full(len(block), block.file, np.int64), block.rows], axis=1)


def _join(arrays: list[Any]) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
