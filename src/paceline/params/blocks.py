"""Rows in blocks: growing adds a block and copies nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.kernels.pointers import BLOCK_ROWS
from paceline.params.memory import PAGE, Memory

_SMALL = 4  # blocks that a table has before its memory comes in large pieces
_PIECE = 4 << 20  # bytes of such a piece, at least

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class Blocks:
    """Rows of `width` numbers of one type (float32 or int64) in blocks of BLOCK_ROWS rows.

    `addresses` (int64 [blocks]) is what kernels take; blocks never move, so it only ever gets longer. A large table
    takes its blocks from pieces of memory in huge pages, where the system has them: rows lie all over the table, and to
    look up where a page of 4 KiB lies takes longer than to fetch the row.
    """

    def __init__(self, width: int, dtype: type[np.float32] | type[np.int64]) -> None:
        self.width = width
        self.dtype = np.dtype(dtype)
        self.arrays: list[Array] = []
        self.addresses: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._rest: list[Array] = []  # blocks of the newest piece that nobody has asked for yet: no memory until then

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in all."""
        made: list[Array] = []
        while (len(self.arrays) + len(made)) * BLOCK_ROWS < rows:
            made.append(self._next(len(self.arrays) + len(made)))
        if made:
            self.arrays += made
            self.addresses = np.concatenate([self.addresses, np.array([a.ctypes.data for a in made], np.int64)])

    def bytes(self, rows: int) -> int:
        """Memory when `rows` rows were written to: whole pages."""
        page = 4096 if rows <= _SMALL * BLOCK_ROWS else PAGE
        written = -(-rows * max(self.width, 1) * self.dtype.itemsize // page) * page
        return min(written, sum(a.nbytes for a in self.arrays))

    def _next(self, present: int) -> Array:
        if present < _SMALL:
            return np.zeros((BLOCK_ROWS, max(self.width, 1)), self.dtype)
        if not self._rest:
            size = BLOCK_ROWS * max(self.width, 1) * self.dtype.itemsize
            count = max(present // 8, -(-_PIECE // size))
            whole = Memory(count * size).bytes.view(self.dtype).reshape(count, BLOCK_ROWS, max(self.width, 1))
            self._rest = [whole[k] for k in reversed(range(count))]
        return self._rest.pop()
