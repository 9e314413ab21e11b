"""Arrays over Arrow Flight: each message is a record batch of four byte columns and a small JSON header.

The buffers of the arrays travel as they are: Arrow hands them to network and receiver without a copy of ours.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

COLUMNS = 4
SCHEMA = pa.schema([(f"part{i}", pa.large_binary()) for i in range(COLUMNS)])
_NOTHING = np.zeros(0, np.uint8)


def pack(arrays: Sequence[npt.NDArray[Any]]) -> Any:
    """A record batch of one row with up to four arrays' bytes. They must not change until it is sent."""
    columns = []
    for i in range(COLUMNS):
        data = pa.py_buffer(np.ascontiguousarray(arrays[i]) if i < len(arrays) else _NOTHING)
        offsets = pa.py_buffer(np.array([0, data.size], np.int64))
        columns.append(pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, data]))
    return pa.record_batch(columns, schema=SCHEMA)


def unpack(batch: Any, column: int, dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
    """The array of a column as a view of what was received (-1 for one unknown length)."""
    found: npt.NDArray[Any] = (
        _bytes_of(batch, column).view(dtype).reshape(*shape) if shape else _bytes_of(batch, column).view(dtype)
    )
    return found if found.flags.aligned else found.copy()


def _bytes_of(batch: Any, column: int) -> npt.NDArray[np.uint8]:
    _, offsets, data = batch.column(column).buffers()
    begin, end = np.frombuffer(offsets, np.int64)[batch.column(column).offset :][:2]
    if end == begin:
        return _NOTHING.copy()
    # Kernels are compiled for arrays that may be written to; nobody else sees this memory.
    memory: Any = (ctypes.c_uint8 * int(end - begin)).from_address(data.address + int(begin))
    memory.keep = data  # as long as an array looks at it
    found: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
    return found


def header(**values: Any) -> bytes:
    """The header of a message."""
    return json.dumps(values).encode()


def read_header(chunk: Any) -> dict[str, Any]:
    """The header of a received message."""
    found: dict[str, Any] = json.loads(chunk.app_metadata.to_pybytes())
    return found


def join(arrays: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.uint8], list[Any]]:
    """Any number of arrays in one (a copy), and what `parts` needs to find them again."""
    places: list[Any] = []
    begin = 0
    for array in arrays:
        places.append([array.dtype.str, list(array.shape), begin])
        begin += -(-array.nbytes // 8) * 8
    whole = np.zeros(begin, np.uint8)
    for array, (_, _, start) in zip(arrays, places, strict=True):
        whole[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return whole, places


def parts(whole: npt.NDArray[np.uint8], places: list[Any]) -> list[npt.NDArray[Any]]:
    """The arrays that `join` put together, as views."""
    found = []
    for dtype, shape, begin in places:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        found.append(whole[begin : begin + size].view(dtype).reshape(shape))
    return found


def size(batch: Any) -> int:
    """Bytes of the arrays in a message."""
    return sum(batch.column(i).buffers()[2].size for i in range(COLUMNS) if batch.column(i).buffers()[2] is not None)


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int16]:
    """float32 rounded to the nearest bfloat16, as its 16 bits."""
    rounded: npt.NDArray[np.int16] = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    return rounded


def from_bf16(values: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    """The numbers that `to_bf16` made."""
    found: npt.NDArray[np.float32] = torch.from_numpy(values).view(torch.bfloat16).float().numpy()
    return found
