"""The inner loops of products of bytes: panels as in ``panels.py``, of tiles of twice as many inputs.

A panel's tile is 16 rows of (column, four neighbouring inputs): 64 bytes, in the order in which a CPU's matrix unit
takes them (Intel's AMX: TDPBSSD), and the vector instructions that came before it too (VPDPBUSD). Sums are 32-bit
integers, and exact: their order does not matter, and every form of the product gives the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.dots import WIDE_DOTS, dot4
from octavo.kernels.cpu.emitter import F32, I32, INT8, WIDTH, Emitter, Value, Variable
from octavo.kernels.cpu.jit import DISABLED, has_int8_matrix_unit
from octavo.kernels.cpu.panels import LINE, PANEL, TILE_BYTES, by_tiles, put_columns, store_scaled
from octavo.kernels.cpu.primitives import floats, primitive, row

BYTE_DEPTH = 64
"""Inputs of a tile."""
QUAD = 4
"""Inputs that are summed at once."""
MOST_INPUTS = 2**17
"""With more, a sum of products of bytes might not fit 32 bits."""

BY_TILES = has_int8_matrix_unit()
SHIFTED = not (DISABLED or BY_TILES)
"""Vectors multiply inputs from 0 to 255 (see :func:`dot4`): 128 is added to them, and taken from the sums again by way
of the weights' own."""

_BLOCK_ROWS = 8 if WIDE_DOTS else 2


# ---------------------------------------------------------------- products


def _byte_product(
    x: int, stride: int, rows: int, panel: int, steps: int, sums: int, more: int, shifts: int, ahead: int
) -> None:
    left = np.stack([row(INT8, x + i * stride, steps * BYTE_DEPTH) for i in range(rows)])
    tiles = row(INT8, panel, steps * BYTE_DEPTH * PANEL).reshape(steps, 2, BYTE_DEPTH // QUAD, WIDTH, QUAD)
    right = tiles.transpose(0, 2, 4, 1, 3).reshape(steps * BYTE_DEPTH, PANEL)
    total = floats(sums, rows * PANEL).view(np.int32)
    # exact in double precision
    total[:] = (left.astype(np.float64) @ right).astype(np.int32).ravel() + (total if more else 0)


@primitive("viiiiiiiii", _byte_product)
def byte_product(
    e: Emitter,
    x: Value,
    stride: Value,
    rows: Value,
    panel: Value,
    steps: Value,
    sums: Value,
    more: Value,
    shifts: Value,
    ahead: Value,
) -> None:
    """``sums [rows, 32] = x [rows, 64 steps] panel``, of signed bytes in 32-bit integers, added to what is there if
    ``more`` is not 0.

    Rows of x are ``stride`` bytes apart; ``rows`` is 1 to 32, and what :func:`configure` was told last. ``shifts`` [32]
    is -128 times the sums of the panel's columns, over all inputs: if :data:`SHIFTED`, sums begin with it, on behalf of
    the calls that add to them too.
    """
    b = e.b
    if not BY_TILES:
        _by_vectors(e, x, stride, rows, panel, steps, sums, more, shifts)
        return
    few = b.icmp_signed("<=", rows, e.const(16))
    for halves, enough in ((1, few), (2, b.not_(few))):
        for fetch, wanted in ((True, "!="), (False, "==")):
            with e.when(b.and_(enough, b.icmp_signed(wanted, ahead, e.const(0)))):
                by_tiles(e, "llvm.x86.tdpbssd", x, stride, panel, steps, sums, more, halves, fetch)


def _by_vectors(
    e: Emitter,
    x: Value,
    stride: Value,
    rows: Value,
    panel: Value,
    steps: Value,
    sums: Value,
    more: Value,
    shifts: Value,
) -> None:
    b, v = e.b, e.vector

    def block(first: Value, count: int) -> None:
        lines = [b.add(x, b.mul(b.add(first, e.const(i)), stride)) for i in range(count)]
        places = [
            [v.pointer(b.add(e.at(sums, b.add(first, e.const(i)), 4 * PANEL), e.const(LINE * c)), I32) for c in (0, 1)]
            for i in range(count)
        ]
        totals: list[list[Variable]] = [[e.variable(v.integer(0)) for _ in (0, 1)] for _ in lines]
        again = b.icmp_signed("!=", more, e.const(0))
        with b.if_else(again) as (on, anew):
            with on:
                _each(totals, places, lambda total, place: total.set(b.load(place, align=4)))
            with anew:
                start = [b.load(v.pointer(b.add(shifts, e.const(LINE * c)), I32), align=4) for c in (0, 1)]
                _each(totals, [start] * count, lambda total, value: total.set(value))
        with e.loop(e.const(0), b.mul(steps, e.const(BYTE_DEPTH // QUAD)), 1) as quad:
            step = b.lshr(quad, e.const(4))
            line = b.add(e.at(panel, step, 2 * TILE_BYTES), e.at(e.const(0), b.and_(quad, e.const(15)), LINE))
            weights = [b.load(v.pointer(b.add(line, e.const(c * TILE_BYTES)), I32), align=4) for c in (0, 1)]
            for address, total_row in zip(lines, totals, strict=True):
                four = b.load(b.inttoptr(e.at(address, quad, QUAD), I32.as_pointer()), align=1)
                inputs = v.splat(b.xor(four, ir.Constant(I32, 0x80808080)))
                for total, weight in zip(total_row, weights, strict=True):
                    total.set(dot4(e, total.get(), inputs, weight))
        _each(totals, places, lambda total, place: b.store(total.get(), place, align=4))

    whole = b.sub(rows, b.urem(rows, e.const(_BLOCK_ROWS)))
    with e.loop(e.const(0), whole, _BLOCK_ROWS) as first:
        block(first, _BLOCK_ROWS)
    with e.loop(whole, rows, 1) as first:
        block(first, 1)


def _each(totals: list[list[Variable]], others: list[list[Value]], act: Any) -> None:
    for total_row, other_row in zip(totals, others, strict=True):
        for total, other in zip(total_row, other_row, strict=True):
            act(total, other)


# ---------------------------------------------------------------- what is written


def _write_byte_panel(
    dtype: int, kind: int, sums: int, rows: int, x_scales: int, scales: int, bias: int, target: int, stride: int
) -> None:
    block = floats(sums, rows * PANEL).view(np.int32).reshape(rows, PANEL).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        block = block * floats(scales, PANEL) * floats(x_scales, rows)[:, None]
    if bias:
        block = block + floats(bias, PANEL)
    put_columns(kind, dtype, block, target, stride)


@primitive("viiiiiiiii", _write_byte_panel)
def write_byte_panel(
    e: Emitter,
    dtype: Value,
    kind: Value,
    sums: Value,
    rows: Value,
    x_scales: Value,
    scales: Value,
    bias: Value,
    target: Value,
    stride: Value,
) -> None:
    """Write ``sums [rows, 32]``, 32-bit integers, times ``scales`` [32] times ``x_scales`` [rows] to rows of ``dtype``
    that lie ``stride`` bytes apart; ``bias`` [32] added if not 0. Scales and bias are f32; ``kind`` as for
    :func:`write_panel`."""
    b, v = e.b, e.vector
    factors = [v.load(F32, scales, e.const(column * WIDTH)) for column in (0, 1)]

    def columns(i: Value) -> list[Value]:
        line = e.at(sums, i, 4 * PANEL)
        places = [v.pointer(b.add(line, e.const(column * LINE)), I32) for column in (0, 1)]
        wholes = [b.sitofp(b.load(place, align=4), v.float) for place in places]
        return [b.fmul(whole, factor) for whole, factor in zip(wholes, factors, strict=True)]

    store_scaled(e, dtype, kind, rows, columns, x_scales, bias, target, stride)
