"""Panels of bfloat16 multiplied on vectors, for CPUs without a matrix unit: stored in 16 bits, computed in float32.

A weight is widened in registers, on its way from the panel to the products of as many rows as registers hold sums for;
inputs are widened a tile at a time into a small buffer, from where a product takes each with no instruction of its own.
(How a block of sums in registers sets the pace: Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008.)
"""

from __future__ import annotations

from llvmlite import ir

from octavo.kernels.cpu.emitter import BF16, F32, FLOAT, I32, I64, WIDTH, Emitter, Value, Variable
from octavo.kernels.cpu.jit import host_features

LANES_BYTES = 4 * WIDTH
_WIDE = "avx512f" in host_features()
_COLUMNS = ((0, 1),) if _WIDE else ((0,), (1,))
"""Halves of a panel that are computed together."""
_BLOCKS = (12, 4, 1) if _WIDE else (6, 2, 1)
"""Rows that are computed together: with their sums, the registers are full."""


def by_vectors(
    e: Emitter,
    x: Value,
    stride: Value,
    rows: Value,
    panel: Value,
    steps: Value,
    sums: Value,
    more: Value,
    ahead: Value,
    depth: int,
    distance: int,
) -> None:
    """``sums [rows, 32] = x [rows, depth steps] panel``: see :func:`octavo.kernels.cpu.panels.panel_product`.

    Args:
        depth: inputs of a tile, which is as many bytes for each of the two halves as so many inputs of 16 columns.
        distance: how far ahead weights are asked for, in bytes.
    """
    b = e.b
    with b.goto_entry_block():
        room = b.alloca(ir.ArrayType(FLOAT, _BLOCKS[0] * depth))
        room.align = LANES_BYTES
    widened = b.ptrtoint(room, I64)
    fetch = b.icmp_signed("!=", ahead, e.const(0))
    start: Value = e.const(0)
    for count in _BLOCKS:
        stop = b.add(start, b.mul(b.sdiv(b.sub(rows, start), e.const(count)), e.const(count)))
        with e.loop(start, stop, count) as first:
            lines = [b.add(x, b.mul(b.add(first, e.const(i)), stride)) for i in range(count)]
            places = [e.at(sums, b.add(first, e.const(i)), 2 * LANES_BYTES) for i in range(count)]
            asked = b.and_(fetch, b.icmp_signed("==", first, e.const(0)))
            for columns in _COLUMNS:
                _block(e, lines, widened, panel, steps, places, more, columns, depth, asked, distance)
        start = stop


def _block(
    e: Emitter,
    lines: list[Value],
    widened: Value,
    panel: Value,
    steps: Value,
    places: list[Value],
    more: Value,
    columns: tuple[int, ...],
    depth: int,
    asked: Value,
    distance: int,
) -> None:
    """Some rows, some halves of the panel."""
    b, v = e.b, e.vector
    half_bytes = 2 * depth * WIDTH
    totals: list[list[Variable]] = [[e.variable(v.const(0.0)) for _ in columns] for _ in lines]
    with e.when(b.icmp_signed("!=", more, e.const(0))):
        for row, place in zip(totals, places, strict=True):
            for total, column in zip(row, columns, strict=True):
                total.set(v.load(F32, place, e.const(column * WIDTH)))
    with e.loop(e.const(0), steps, 1) as k:
        weights = e.at(panel, k, 2 * half_bytes)
        with e.when(asked):
            for column in columns:
                e.prefetch(b.add(weights, e.const(distance + column * half_bytes)), half_bytes, near=2)
        for i, line in enumerate(lines):
            for j in range(0, depth, WIDTH):
                given = v.load(BF16, line, b.add(b.mul(k, e.const(depth)), e.const(j)))
                v.store(F32, widened, e.const(i * depth + j), given)
        with e.loop(e.const(0), e.const(depth // 2), 1) as pair:
            held = []
            for column in columns:
                place = b.add(weights, e.at(e.const(column * half_bytes), pair, LANES_BYTES))
                both = b.load(v.pointer(place, I32), align=4)
                even = b.bitcast(b.shl(both, v.integer(16)), v.float)
                held.append((even, b.bitcast(b.and_(both, v.integer(-(1 << 16))), v.float)))
            for i, row in enumerate(totals):
                for item in (0, 1):
                    index = b.add(b.mul(pair, e.const(2)), e.const(i * depth + item))
                    factor = v.splat(e.scalar.load(F32, widened, index))
                    for total, weight in zip(row, held, strict=True):
                        total.set(v.fma(factor, weight[item], total.get()))
    for row, place in zip(totals, places, strict=True):
        for total, column in zip(row, columns, strict=True):
            v.store(F32, place, e.const(column * WIDTH), total.get())
