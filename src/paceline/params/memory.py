"""Memory in huge pages that comes when it is first written to, and can go back to the system piece by piece."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

PAGE = 2 << 20  # bytes of a huge page


class Memory:
    """`size` bytes, all 0. bytes: the same as an array, uint8 [size].

    Pages of 2 MiB where the system gives such on request (Linux, unless it is set to never): rows and places of an
    index lie all over their memory, and to look up where a page of 4 KiB lies takes longer than to fetch what is there.
    Raises MemoryError if there is not so much.
    """

    def __init__(self, size: int) -> None:
        self._map: mmap.mmap | None = None
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            self.bytes: npt.NDArray[np.uint8] = np.zeros(size, np.uint8)
            return
        try:
            self._map = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"{size:,} bytes: {error.strerror}") from error
        if size >= PAGE:
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = np.frombuffer(self._map, np.uint8, size)

    def give_back(self, start: int, stop: int) -> int:
        """The huge pages that lie wholly in the bytes [start, stop) go back: they read as 0, and come again when they
        are written to. Returns how many bytes that is."""
        begin, end = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
        if self._map is None or end <= begin:
            return 0
        try:
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)
        except OSError:
            return 0
        return end - begin
