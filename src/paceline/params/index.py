"""The index of a table: which row an id has (`paceline.kernels.index` does the work)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.kernels import index
from paceline.params.memory import PAGE, Memory

Ints = npt.NDArray[np.int64]

_FULL = 0.75  # of the places
_MOVED = 12  # places that are moved for each id that comes, so that neither index ever gets much fuller than that
_MOVED_PER_CALL = 1 << 15
_NONE: Ints = np.zeros(0, np.int64)


class Index:
    """Places for rows, at least `capacity` of them. Not thread-safe, but `find` changes nothing.

    When it is full, one of twice the size takes its place, bit by bit: each call of `make_room` moves a stretch of
    places. An id is where its place in the old one says: in the old one as long as that place was not moved yet, else
    in the new one. So a look-up is one as ever, the new one's memory comes as the old one's goes, and no call takes
    much longer than others. (What is moved of a chain of full places is moved whole, from an empty place to the next.)
    """

    def __init__(self, capacity: int) -> None:
        self._entries = self._places(max(1 << (capacity - 1).bit_length(), 16))
        self._old = _NONE
        self._origin = 0  # the place of the old one with which moving began: an empty one
        self._moved = 0  # how many from there on
        self._released, self._upto = 0, 0  # bytes of the old one that went back to the system; up to which one

    def _places(self, count: int) -> Ints:
        self._coming = Memory(8 * count)
        return self._coming.bytes.view(np.int64)

    @property
    def bytes(self) -> int:
        """Memory. Of a new index, what was moved into yet."""
        if not self.growing:
            return self._entries.nbytes
        share = self._moved / self._old.shape[0]
        return int(share * self._entries.nbytes) + self._old.nbytes - self._released

    @property
    def growing(self) -> bool:
        """Whether a part still lies in its old place, from where `make_room` moves it."""
        return bool(self._old.shape[0])

    def find(self, ids_at: Ints, size: int, ids: Ints, found: Ints) -> int:
        """found[i] = row of ids[i] or -1; returns for how many there is none. ids_at: addresses of the blocks of ids
        that rows have, `size` of them."""
        old = (self._old, self._origin, self._moved)
        return int(index.find(self._entries, *old, ids_at, size, ids, found))

    def find_or_insert(self, ids_at: Ints, size: int, ids: Ints, found: Ints) -> int:
        """As `find` of distinct ids, and those without a row get size, size + 1, ...; returns how many. There must be
        room for them."""
        old = (self._old, self._origin, self._moved)
        return int(index.find_or_insert(self._entries, *old, ids_at, size, ids, found))

    def make_room(self, ids_at: Ints, size: int, more: int) -> None:
        """For `more` ids; size: how many there are."""
        if self.growing:
            self._move(ids_at, max(_MOVED_PER_CALL, _MOVED * more))
        capacity = self._entries.shape[0]
        if size + more <= _FULL * capacity:
            return
        if self.growing:
            self._move(ids_at, self._old.shape[0])
        while size + more > _FULL * capacity:
            capacity *= 2
        before = self._coming
        fresh = self._places(capacity)
        self._leaving, self._old, self._entries = before, self._entries, fresh
        self._origin, self._moved = int(index.first_empty(self._old)), 0
        self._released, self._upto = 0, 8 * self._origin
        self._move(ids_at, max(_MOVED_PER_CALL, _MOVED * more))

    def _move(self, ids_at: Ints, places: int) -> None:
        count = self._old.shape[0]
        self._moved = int(index.move(self._entries, self._old, self._origin, self._moved, places, ids_at))
        if self._moved == count:
            del self._leaving
            self._old = _NONE
            return
        # What lies before the origin is moved last of all, and goes with the rest.
        stop = 8 * min(self._origin + self._moved, count)
        given = self._leaving.give_back(self._upto, stop)
        if given:
            self._released, self._upto = self._released + given, stop // PAGE * PAGE
