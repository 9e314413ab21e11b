"""Blocks of rows behind an array of addresses: a table grows by one more block and never copies the others.

A kernel takes `addresses` (int64 [blocks]) and a row number; row r lives in block r >> SHIFT at offset r & MASK. The
owner of the blocks (`paceline.params.blocks`) keeps them alive while a kernel runs.

Rows of a batch lie all over a table, so to wait for memory is most of what a plain loop over them does. Kernels ask
for the row that comes AHEAD rows later (`prefetch`) before they work on the present one. They look at numbers through
views on an address, which cost nothing: a slice of an array counts references, with two atomic operations each.
"""

from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from paceline.kernels.jit import kernel

carray = numba.carray  # type: ignore[attr-defined]

SHIFT = 15
BLOCK_ROWS = 1 << SHIFT
MASK = BLOCK_ROWS - 1
AHEAD = 12
LINE = 64  # bytes that come from memory at a time


def _pointer_to(kind):
    """An intrinsic that takes an address (int64) for a pointer to numbers of this kind."""

    @intrinsic
    def pointer(typingctx, address):
        signature = types.CPointer(kind)(types.int64)

        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

        return signature, codegen

    return pointer


_float_pointer, _int_pointer = _pointer_to(types.float32), _pointer_to(types.int64)
_word_pointer, _half_pointer = _pointer_to(types.uint32), _pointer_to(types.uint16)


@intrinsic
def prefetch(typingctx, address):
    """Ask for the line of memory at `address` (int64), without waiting for it. Any address will do: none faults."""
    signature = types.void(types.int64)

    def codegen(context, builder, sig, args):
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        read, keep, data = (ir.Constant(number, n) for n in (0, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], pointer), read, keep, data])
        return context.get_dummy_value()

    return signature, codegen


@kernel
def address_of(addresses, row, size):
    """Where row `row` of blocks of rows of `size` bytes lies."""
    return addresses[row >> SHIFT] + (row & MASK) * size


@kernel
def prefetch_bytes(address, size):
    """`prefetch` of all lines that hold the `size` bytes from `address` on, of four of them at most."""
    last = address + size - 1
    prefetch(address)
    if size > LINE:
        prefetch(min(address + LINE, last))
        prefetch(min(address + 2 * LINE, last))
    prefetch(last)


@kernel
def floats(address, count):
    """View of `count` float32 from `address` on."""
    return carray(_float_pointer(address), (count,), np.float32)


@kernel
def ints(address, count):
    """View of `count` int64 from `address` on."""
    return carray(_int_pointer(address), (count,), np.int64)


@kernel
def words(address, count):
    """View of `count` uint32 from `address` on."""
    return carray(_word_pointer(address), (count,), np.uint32)


@kernel
def halves(address, count):
    """View of `count` uint16 from `address` on."""
    return carray(_half_pointer(address), (count,), np.uint16)


@kernel
def floats_at(addresses, row, width):
    """View of row `row` of blocks of `width` float32."""
    return floats(address_of(addresses, row, width * 4), width)


@kernel
def ints_at(addresses, row, width):
    """View of row `row` of blocks of `width` int64."""
    return ints(address_of(addresses, row, width * 8), width)
