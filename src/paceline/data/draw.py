"""Interactions as batches: an epoch is a shuffle of all of them, each with negatives that were drawn for it.

A sample's negatives depend on (seed, epoch, place in the epoch) alone: whoever reads a span again, after a resume or
for a lost worker, gets the same batch, and so does a run with another number of workers.
"""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np

from paceline.batch import Batch, Cursor, Ints, Span
from paceline.data.interactions import InteractionSet, make_set, read_rows
from paceline.data.moments import no_moments
from paceline.data.stream import Plan
from paceline.data.text import Dialect
from paceline.kernels import interactions as kernels
from paceline.schema import Interactions, Schema


class InteractionLog:
    """How to read interactions (a `paceline.data.stream.Source`). Files are read once, when they are first needed.

    dialect: of text, None for Parquet; tests: files of interactions that are only ranked; most: of them for each type.
    """

    def __init__(
        self, spec: Interactions, dialect: Dialect | None, skip_bad_rows: bool, tests: list[str], most: int
    ) -> None:
        self.spec = spec
        self.tests = tests
        self._dialect, self._skip, self._most = dialect, skip_bad_rows, most
        self._schema = spec.schema()
        self._lock = threading.Lock()
        self._read: tuple[list[str], InteractionSet] | None = None

    @property
    def schema(self) -> Schema:
        return self._schema

    def set_of(self, files: list[str], tests: list[str] | None = None) -> InteractionSet:
        """What the files hold; tests: files to rank instead of what the job holds out. Raises DataError."""
        if tests is not None:
            return self._make(files, tests)
        with self._lock:
            if self._read is None or self._read[0] != files:
                self._read = (list(files), self._make(files, self.tests))
            return self._read[1]

    def _make(self, files: list[str], tests: list[str]) -> InteractionSet:
        spec, timed = self.spec, self.spec.holdout is not None and self.spec.holdout.last
        rows = read_rows(files, spec, self._dialect, self._skip, timed)
        given = read_rows(tests, spec, self._dialect, self._skip, False) if tests else None
        return make_set(rows, given, spec, self._most)

    def batches(self, files: list[str], plan: Plan) -> Generator[Batch]:
        """The batches of epoch `plan.day`: first the spans to be read again, then the others in order."""
        found = self.set_of(files)
        keys = np.empty(len(found.users), np.uint64)
        kernels.order_keys(self.spec.seed, plan.day, keys)
        order = np.argsort(keys, kind="stable")
        del keys
        moments = no_moments(0)
        behind = Span(plan.day, plan.start, plan.start, moments)
        for span in plan.again:
            yield self._batch(found, order[span.start.row : span.stop.row], span, behind)
        for start in range(plan.start.row, len(order), plan.size):
            stop = min(start + plan.size, len(order))
            span = Span(plan.day, Cursor(0, start), Cursor(0, stop), moments)
            behind = Span(plan.day, span.stop, span.stop, moments)
            yield self._batch(found, order[start:stop], span, behind)

    def _batch(self, found: InteractionSet, rows: Ints, span: Span, behind: Span) -> Batch:
        places = np.arange(span.start.row, span.stop.row)
        users, items, types = found.users[rows], found.items[rows], found.types[rows]
        drawn = np.empty((len(rows), self.spec.negatives), np.int64)
        lists, weaker = found.observed, found.weaker if found.weaker is not None else found.observed
        of = found.rows_of(users, types)
        kernels.draw_negatives(
            self.spec.seed, span.day, places, of, lists.starts, lists.found, found.weaker is None, weaker.starts,
            weaker.found, self.spec.harder, len(found.item_ids), drawn,
        )  # fmt: skip
        ids = np.empty((len(rows), 2 + self.spec.negatives), np.int64)
        ids[:, 0], ids[:, 1] = found.user_ids[users], found.item_ids[items]
        ids[:, 2:] = found.item_ids[drawn]
        first = span.day == 0 and span.start.row == 0
        return Batch(
            np.ones(len(rows), np.float32), ids, (), types.astype(np.float32)[:, None], None, span, behind,
            found.bad if first else (),
        )  # fmt: skip
