"""Push and pull inside one process: direct calls on the shard. Workers pull side by side; an update is alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from paceline.batch import Ints
from paceline.exchange.gate import Gate
from paceline.pace import Apply
from paceline.params.shard import Applied, Gradient, Shard, Weighted
from paceline.params.sparse import Floats
from paceline.params.table import unique


@dataclass(frozen=True, slots=True)
class Pulled:
    """Rows of a batch: numbers int64 [n] in the shard's table, weights float32 [n, w] of the distinct ids, and
    inverse int32 [positions] from the batch's positions to them; counts int32 [n]: updates that the rows had had;
    applied: the sums of gradients that come along, if an optimizer asks for them."""

    numbers: Ints
    weights: Floats
    inverse: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    applied: Applied | None = None

    @property
    def bytes(self) -> int:
        """What a pull of these rows carries: ids int64 there, weights float32 back, and `applied`."""
        sums = 0 if self.applied is None else self.applied.bytes
        return int(8 * self.numbers.shape[0] + self.weights.nbytes) + sums


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a worker shows when it pulls and pushes. attempt: tells lease from lease where a gradient's was lost and
    issued again; version: of the parameters that it must see at least."""

    gradient: int
    attempt: int = 0
    version: int = 0


class DirectRoute:
    """The route of the local runtime. Gradients wait here, by number, until the pace machine settles them."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._gate = Gate()
        self._waiting: dict[int, Gradient] = {}

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Nobody pulls (and so creates rows) or updates meanwhile: for copying the state."""
        with self._gate.alone():
            yield

    def pull(self, ids: Ints, dense: Tensor | None, ticket: Ticket | None = None) -> Pulled:
        """Rows for a batch's ids (int64 [positions], repeats allowed; new ids are created) and, unless `dense` is None,
        the dense parameters. Here everybody sees the newest version, whatever the ticket asks for."""
        distinct, inverse = unique(ids)
        return self.pull_distinct(distinct, inverse, dense)

    def pull_distinct(self, distinct: Ints, inverse: npt.NDArray[np.int32], dense: Tensor | None) -> Pulled:
        """The same of distinct ids; inverse: int32, from whatever positions there are to them."""
        return self.pull_rows(self.rows_of(distinct), inverse, dense)

    def rows_of(self, distinct: Ints) -> Ints:
        """Numbers int64 [n] of the rows of distinct ids, which they keep; new ids get a row."""
        with self._gate.shared():
            numbers, unknown = self.shard.table.look_up(distinct)
            growing = self.shard.table.growing
        if unknown or growing:  # an index that grows moves on with every call
            new = numbers < 0
            with self._gate.alone():
                numbers[new] = self.shard.table.find_or_insert(distinct[new])
        return numbers

    def pull_rows(self, numbers: Ints, inverse: npt.NDArray[np.int32], dense: Tensor | None) -> Pulled:
        """The same of rows whose numbers are known."""
        with self._gate.shared():
            weights, counts = self.shard.table.pull_counted(numbers, numbers)  # none is missing, so ids are not read
            if dense is not None:
                self.shard.pull_dense(dense)
            applied = self.shard.applied(numbers)
        return Pulled(numbers, weights, inverse, counts, applied)

    def read(self, ids: Ints) -> Pulled:
        """Rows for evaluation: nothing is created; an unknown id has the row it would start from.

        Takes no lock, so that threads score side by side: call it only while nobody trains.
        """
        distinct, inverse = unique(ids)
        numbers = self.shard.table.find(distinct)
        weights, counts = self.shard.table.pull_counted(numbers, distinct)
        return Pulled(numbers, weights, inverse, counts)

    def push(self, number: int, gradient: Gradient) -> None:
        """Keep a gradient until `apply` or `drop` names it."""
        self._waiting[number] = gradient

    def apply(self, command: Apply) -> float:
        """Carry out an update. Returns the norm of the gradient that was applied."""
        with self._gate.alone():
            parts = [
                Weighted(self._waiting.pop(p.gradient), p.share, p.factor, p.token, p.weight) for p in command.parts
            ]
            c = command
            return self.shard.apply(c.version, c.samples, parts, c.row_limit, c.weighing, c.workers)

    def drop(self, number: int) -> None:
        """Forget a gradient."""
        del self._waiting[number]

    def read_dense(self, into: Tensor) -> None:
        """The dense parameters, for evaluation."""
        self.shard.pull_dense(into)

    def settle(self) -> None:
        """Return when everything that was ordered is done: here it always is."""

    @property
    def version(self) -> int:
        """Updates that have been carried out."""
        return self.shard.version

    @property
    def ids(self) -> int:
        """Rows there are."""
        return len(self.shard.table)

    @property
    def bytes(self) -> int:
        """Memory of the tables."""
        return self.shard.table.bytes

    def take_counted(self) -> tuple[Ints, list[float]]:
        """(row staleness by its number of binary digits int64 [64], norms of updates that `apply` did not return) since
        the last call."""
        ages = self.shard.table.ages.copy()
        self.shard.table.ages[:] = 0
        return ages, []
