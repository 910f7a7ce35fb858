"""Rows of activations as bytes: each with a scale of its own, found while it is computed with.

The largest magnitude of a row becomes 127. So a row's bytes depend on that row alone, and so does what is computed with
them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.emitter import FLOAT, I8, Emitter, Lanes, Value, Variable
from octavo.kernels.cpu.jit import device, kernel
from octavo.kernels.cpu.launch import FIRST_ARGUMENT, NUM_TASKS, TASK, packer
from octavo.kernels.cpu.primitives import fetch_add, floats, get, load_i64, primitive

LEAST = 1e-30
"""A row whose largest magnitude is less is taken for zeros: what divides by it would not be finite."""

_ROUND = 12582912.0
"""1.5 * 2**23: added to a small float it leaves the nearest integer in the low bits."""

_MAGNITUDE = 0x7FFFFFFF


def whole_numbers(address: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
    """``count`` signed bytes at ``address``."""
    memory: Any = (ctypes.c_char * count).from_address(address) if count else bytearray()
    return np.frombuffer(memory, np.int8)


def _quantize_row(dtype: int, x: int, target: int, scale: int, count: int, padded: int) -> None:
    values = get(dtype, x, count)
    bits = values.view(np.uint32) & np.uint32(_MAGNITUDE)
    largest = (bits.max() if count else np.uint32(0)).view(np.float32)
    small = largest < np.float32(LEAST)
    with np.errstate(invalid="ignore", over="ignore"):
        floats(scale, 1)[0] = np.float32(0) if small else largest / np.float32(127)
        rounded = values * (np.float32(0) if small else np.float32(127) / largest) + np.float32(_ROUND)
    row = whole_numbers(target, padded)
    row[:count] = rounded.view(np.uint32).astype(np.uint8).view(np.int8)
    row[count:] = 0


@primitive("viiiiii", _quantize_row)
def quantize_row(e: Emitter, dtype: Value, x: Value, target: Value, scale: Value, count: Value, padded: Value) -> None:
    """A row of ``dtype`` becomes ``padded`` bytes, zeros after the first ``count``, and the float at ``scale`` what
    they are to be multiplied by. A row that holds what is no number gets such a scale."""
    b = e.b
    for kind in e.per_dtype(dtype):
        most = e.variable(e.vector.integer(0)), e.variable(e.scalar.integer(0))
        for lanes, i in e.elementwise(count):
            _raise(e, most[lanes is e.scalar], _magnitude(lanes, lanes.load(kind, x, i)))
        _raise(e, most[1], e.halves(most[0].get(), lambda p, q: b.select(b.icmp_unsigned(">", p, q), p, q)))
        largest = b.bitcast(most[1].get(), FLOAT)
        small = b.fcmp_ordered("<", largest, ir.Constant(FLOAT, LEAST))
        zero, top = ir.Constant(FLOAT, 0.0), ir.Constant(FLOAT, 127.0)
        b.store(b.select(small, zero, b.fdiv(largest, top)), b.inttoptr(scale, FLOAT.as_pointer()), align=4)
        factor = b.select(small, zero, b.fdiv(top, largest))
        for lanes, i in e.elementwise(count):
            scaled = b.fmul(lanes.load(kind, x, i), lanes.splat(factor))
            bits = b.bitcast(b.fadd(scaled, lanes.const(_ROUND)), lanes.int32)
            b.store(b.trunc(bits, lanes.of(I8)), lanes.pointer(b.add(target, i), I8), align=1)
    with e.loop(count, padded, 1) as i:
        b.store(ir.Constant(I8, 0), b.inttoptr(b.add(target, i), I8.as_pointer()), align=1)


def _magnitude(lanes: Lanes, value: Value) -> Value:
    """As an integer: those of floats are in the same order, and what is no number is the largest."""
    return lanes.b.and_(lanes.b.bitcast(value, lanes.int32), lanes.integer(_MAGNITUDE))


def _raise(e: Emitter, most: Variable, value: Value) -> None:
    held = most.get()
    most.set(e.b.select(e.b.icmp_unsigned(">", value, held), value, held))


@device
def quantize_span(
    dtype: int, x: int, x_stride: int, target: int, padded: int, scales: int, first: int, last: int, width: int
) -> None:
    """Rows ``first`` to ``last`` of x, ``x_stride`` bytes apart, as rows of ``padded`` bytes, and a float each at
    ``scales``."""
    for row in range(first, last):
        quantize_row(dtype, x + row * x_stride, target + row * padded, scales + 4 * row, width, padded)


# ---------------------------------------------------------------- whole batches

ROWS_PER_TASK = 4

(X, X_STRIDE, DTYPE, COUNT, WIDTH, PADDED, SHARED, SHARED_BYTES) = range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 8, 8)
pack_quantize = packer("8q")


@device
def quantize_tasks(p: int, counter: int, shared: int) -> int:
    """Take tasks, runs of rows, until none is left; returns how many. At ``shared`` come to lie first the bytes of all
    rows, then their scales: what :func:`quantized_bytes` is the size of."""
    count, width, padded = load_i64(p + COUNT), load_i64(p + WIDTH), load_i64(p + PADDED)
    tasks, scales = load_i64(p + NUM_TASKS), shared + count * padded
    done = 0
    while True:
        task = fetch_add(counter, 1)
        if task >= tasks:
            break
        first, last = task * ROWS_PER_TASK, min(count, (task + 1) * ROWS_PER_TASK)
        quantize_span(
            load_i64(p + DTYPE), load_i64(p + X), load_i64(p + X_STRIDE), shared, padded, scales, first, last, width
        )
        done += 1
    return done


@kernel
def quantize_rows(p: int) -> None:
    """The rows of one batch."""
    quantize_tasks(p, p + TASK, load_i64(p + SHARED))


def quantized_bytes(count: int, padded: int) -> int:
    """What ``count`` rows of ``padded`` bytes and their scales take."""
    return count * (padded + 4)
