"""Blocks of rows behind an array of addresses: a table grows by one more block and never copies the others.

A kernel takes `addresses` (int64 [blocks]) and a row number; row r lives in block r >> SHIFT at offset r & MASK. The
owner of the blocks (`paceline.params.blocks`) keeps them alive while a kernel runs.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from paceline.kernels.jit import kernel

carray = numba.carray  # type: ignore[attr-defined]

SHIFT = 15
BLOCK_ROWS = 1 << SHIFT
MASK = BLOCK_ROWS - 1


@intrinsic
def _float_pointer(typingctx, address):
    signature = types.CPointer(types.float32)(types.int64)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


@intrinsic
def _int_pointer(typingctx, address):
    signature = types.CPointer(types.int64)(types.int64)

    def codegen(context, builder, sig, args):
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return signature, codegen


@kernel
def floats_at(addresses, row, width):
    """View of row `row` of blocks of `width` float32."""
    return carray(_float_pointer(addresses[row >> SHIFT] + (row & MASK) * width * 4), (width,), np.float32)


@kernel
def ints_at(addresses, row, width):
    """View of row `row` of blocks of `width` int64."""
    return carray(_int_pointer(addresses[row >> SHIFT] + (row & MASK) * width * 8), (width,), np.int64)
