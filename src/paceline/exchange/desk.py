"""A shard's desk: what workers and the coordinator may ask of it, whether over the network or in its own process."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch

from paceline.batch import Ints
from paceline.exchange.direct import DirectRoute, Pulled, Ticket
from paceline.pace import Apply
from paceline.params.shard import Gradient
from paceline.params.sparse import Floats

_NO_POSITIONS = np.zeros(0, np.int32)
PATIENCE = 60.0  # seconds that a pull waits for a version before it gives up


class Superseded(Exception):
    """The caller belongs to an earlier generation of the job, or its lease was given to another: it has to stop."""


@dataclass(frozen=True, slots=True)
class Rows:
    """weights float32 [n, w]; dense float32 [slice], or None if the caller has that version; version: of both."""

    weights: Floats
    dense: Floats | None
    version: int


class Desk:
    """Thread-safe. A pull waits until the shard has the version that its ticket asks for, so orders to update may
    still be on their way when the work is granted.

    A gradient's rows are remembered from its pull to its push and its update, so that a push needs no ids. Whoever
    pulls for a gradient last is who may push it: an attempt that was taken for dead is refused.
    """

    def __init__(self, home: DirectRoute) -> None:
        self.home = home
        self.generation = -1
        self._changed = threading.Condition()
        self._pulled: dict[int, tuple[int, Pulled]] = {}

    def begin(self, generation: int, home: DirectRoute) -> None:
        """A new generation with this state: whoever is of an older one is refused, and what waited is forgotten.

        Raises Superseded for an older generation than the present: what a network that was cut had held back may arrive
        after what was sent later.
        """
        with self._changed:
            if generation < self.generation:
                raise Superseded(f"generation {generation} is over; it is {self.generation}")
            self.generation, self.home = generation, home
            self._pulled.clear()
            self._changed.notify_all()

    def check(self, generation: int) -> None:
        """Raises Superseded if the shard's generation is another."""
        if generation != self.generation:
            raise Superseded(f"generation {generation} is over; it is {self.generation}")

    def pull(self, generation: int, ticket: Ticket, ids: Ints, have: int) -> Rows:
        """Rows of distinct ids (int64 [n], all of this shard; new ones are created), and the dense slice unless the
        caller has it in the present version already."""
        with self._changed:
            self._await(generation, ticket.version)
            pulled = self.home.pull_distinct(ids, _NO_POSITIONS, None)
            self._pulled[ticket.gradient] = (ticket.attempt, pulled)
            version = self.home.version
            dense = None if have == version else self.home.shard.dense.flat.numpy().copy()
        return Rows(pulled.weights, dense, version)

    def push(self, generation: int, ticket: Ticket, dense: Floats, row_gradients: Floats) -> None:
        """Keep a gradient until the coordinator settles it: dense float32 [slice], row_gradients float32 [n, w] in the
        order of the pull's ids."""
        with self._changed:
            self.check(generation)
            attempt, pulled = self._pulled.get(ticket.gradient, (-1, None))
            if attempt != ticket.attempt or pulled is None:
                raise Superseded(f"gradient {ticket.gradient} was given to another worker")
            flat = torch.from_numpy(dense)
            gradient = Gradient(flat, pulled.numbers, row_gradients, pulled.counts, pulled.applied)
            self.home.push(ticket.gradient, gradient)

    def apply(self, generation: int, command: Apply) -> float:
        """Carry out an update; the norm of this shard's part of its gradient."""
        with self._changed:
            self.check(generation)
            norm = self.home.apply(command)
            for part in command.parts:
                self._pulled.pop(part.gradient, None)
            self._changed.notify_all()
            return norm

    def drop(self, generation: int, gradient: int) -> None:
        """Forget a gradient."""
        with self._changed:
            self.check(generation)
            self._pulled.pop(gradient, None)
            self.home.drop(gradient)

    def read(self, ids: Ints) -> Rows:
        """Rows of distinct ids, an unknown one as it would start, and the dense slice; nothing is created."""
        with self._changed, self.home.whole():
            table = self.home.shard.table
            weights, _ = table.pull_counted(table.find(ids), ids)
            return Rows(weights, self.home.shard.dense.flat.numpy().copy(), self.home.version)

    def await_version(self, generation: int, version: int) -> None:
        """Return when the shard has it. Raises Superseded, or TimeoutError."""
        with self._changed:
            self._await(generation, version)

    def _await(self, generation: int, version: int) -> None:
        if not self._changed.wait_for(lambda: self.home.version >= version or generation != self.generation, PATIENCE):
            raise TimeoutError(f"version {version} did not come; the shard has {self.home.version}")
        self.check(generation)
