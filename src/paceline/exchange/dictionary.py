"""Ids that a worker names to one shard again and again: in full the first time, later by their number.

Both sides keep the same list of the ids that went between them, in the order in which they came. What a batch names is
then a set of numbers, told by its gaps, and the ids that are new (8 bytes each), which take the next numbers. Frequent
ids come early, so they have low numbers, and gaps between them are small.

The worker keeps 12 bytes an id and 8 to 16 of index, the shard 12: its row's number, so that it looks up new ids only.
Once a list would grow beyond its capacity both sides begin it anew: ids that are out of use cost no memory for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, final

import numpy as np
import numpy.typing as npt

from paceline.batch import Ints
from paceline.exchange.codes import Bytes8, packed, packed_set, unpacked, unpacked_set
from paceline.kernels import numbering

CAPACITY = 1 << 22  # ids of one worker on all shards: about 100 MB there, and 50 MB on the shards together
_ROOM = 1 << 10
_HEAD = 24  # bytes: how many ids are known and how many new, and whether the list begins anew
Fields = npt.NDArray[np.int32]
_Array = TypeVar("_Array", Ints, Fields)


@dataclass(frozen=True, slots=True)
class Named:
    """What a worker tells a shard. order int64 [n]: of the ids that were given, as the shard sees them: by fields,
    within a field by numbers; fresh: how many of them are new; listed: how many the list had before."""

    order: Ints
    fresh: int
    listed: int
    message: Bytes8


@final
class IdWriter:
    """The worker's side. fields: how many the job has, if shards need to know; else ids count as of one field."""

    def __init__(self, fields: int = 0, capacity: int = CAPACITY) -> None:
        self._of, self._capacity, self._size = fields, capacity, 0
        self._ids: Ints = np.empty(0, np.int64)
        self._fields: Fields = np.empty(0, np.int32)
        self._slots: Fields = np.empty(0, np.int32)
        self._begin_anew()

    def __len__(self) -> int:
        return self._size

    @property
    def bytes(self) -> int:
        """Memory of the list and its index."""
        return self._ids.nbytes + self._fields.nbytes + self._slots.nbytes

    def name(self, ids: Ints, fields: Fields) -> Named:
        """Distinct ids int64 [n]; fields int32 [n]: the field of each, which matters for new ids alone."""
        numbers = np.empty(ids.shape[0], np.int32)
        fresh = int(numbering.find(ids, self._ids, self._slots, numbers))
        anew = self._size > 0 and self._size + fresh > self._capacity
        if anew:
            self._begin_anew()
            numbers[:], fresh = -1, ids.shape[0]
        new, listed = np.flatnonzero(numbers < 0), self._size
        if self._of:
            new = new[np.argsort(fields[new], kind="stable")]
        known = np.sort(numbers[numbers >= 0]).astype(np.int64)
        numbers[new] = np.arange(listed, listed + fresh, dtype=np.int32)
        self._append(ids[new], fields[new])
        order = np.argsort(_keys(numbers, self._fields) if self._of else numbers)
        head = np.array([known.shape[0], fresh, anew]).view(np.uint8)
        whole = [head, packed_set(known), ids[new].view(np.uint8)]
        if self._of:
            whole.append(packed(np.bincount(fields[new], minlength=self._of)))
        return Named(order, fresh, listed, np.concatenate(whole))

    def _append(self, ids: Ints, fields: Fields) -> None:
        start, self._size = self._size, self._size + ids.shape[0]
        self._ids, self._fields = _grown(self._ids, start, self._size), _grown(self._fields, start, self._size)
        self._ids[start : self._size] = ids
        self._fields[start : self._size] = fields if self._of else 0
        if 2 * self._size > self._slots.shape[0]:
            self._slots, start = np.zeros(1 << (2 * self._size).bit_length(), np.int32), 0
        numbering.enter(self._ids, self._slots, start, self._size)

    def _begin_anew(self) -> None:
        self._size = 0
        self._ids, self._fields = np.empty(_ROOM, np.int64), np.empty(_ROOM, np.int32)
        self._slots = np.zeros(4 * _ROOM, np.int32)


@final
class IdReader:
    """The shard's side; rows must keep their numbers as long as it lives. fields: as the worker's."""

    def __init__(self, fields: int = 0) -> None:
        self._of, self._size = fields, 0
        self._rows: Ints = np.empty(0, np.int64)
        self._fields: Fields = np.empty(0, np.int32)
        self._begin_anew()

    def __len__(self) -> int:
        return self._size

    def read(self, data: Bytes8, rows_of: Callable[[Ints], Ints]) -> tuple[Ints, Bytes8]:
        """(rows int64 [n] in `Named.order`, what follows in the message). rows_of: the rows of new ids, made if need
        be."""
        count, fresh, anew = data[:_HEAD].copy().view(np.int64).tolist()
        if anew:
            self._begin_anew()
        known, at = unpacked_set(data, _HEAD, count)
        stop, start = at + 8 * fresh, self._size
        new = rows_of(data[at:stop].copy().view(np.int64))  # a copy is aligned
        self._size += fresh
        self._rows = _grown(self._rows, start, self._size)
        self._rows[start : self._size] = new
        numbers = np.concatenate([known, np.arange(start, self._size)])
        if self._of:
            counts, stop = unpacked(data, stop, self._of)
            self._fields = _grown(self._fields, start, self._size)
            self._fields[start : self._size] = np.repeat(np.arange(self._of, dtype=np.int32), counts)
            numbers = numbers[np.argsort(_keys(numbers, self._fields))]
        return self._rows[numbers], data[stop:]

    def _begin_anew(self) -> None:
        self._size = 0
        self._rows, self._fields = np.empty(_ROOM, np.int64), np.empty(_ROOM, np.int32)


def _keys(numbers: npt.NDArray[np.integer], fields: Fields) -> Ints:
    """What sorts numbers by field, and within a field as they are."""
    keys: Ints = (fields[numbers].astype(np.int64) << 32) + numbers
    return keys


def _grown(array: _Array, used: int, needed: int) -> _Array:
    if needed <= array.shape[0]:
        return array
    more = np.empty(max(needed, 2 * array.shape[0]), array.dtype)
    more[:used] = array[:used]
    return more
