"""Rows in blocks: growing adds a block and copies nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.kernels.pointers import BLOCK_ROWS


class Blocks:
    """Rows of `width` numbers of one type (float32 or int64) in blocks of BLOCK_ROWS rows.

    `addresses` (int64 [blocks]) is what kernels take; blocks never move, so it only ever gets longer.
    """

    def __init__(self, width: int, dtype: type[np.float32] | type[np.int64]) -> None:
        self.width = width
        self.dtype = np.dtype(dtype)
        self.arrays: list[npt.NDArray[np.float32] | npt.NDArray[np.int64]] = []
        self.addresses: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows in all."""
        while len(self.arrays) * BLOCK_ROWS < rows:
            self.arrays.append(np.zeros((BLOCK_ROWS, max(self.width, 1)), self.dtype))
            self.addresses = np.array([a.ctypes.data for a in self.arrays], np.int64)
