"""The inner loops of matrix products with packed weights, as primitives (see ``primitives.py``).

A weight lies in *panels* of 32 columns. A panel's items follow one another in the order in which they are multiplied:
for every 32 inputs, two tiles of 16 columns, each of 16 rows of (column, two neighbouring inputs). That is the order in
which a CPU's matrix unit takes them (Intel's AMX: TDPBF16PS), so a product reads its weights as one stream. CPUs with
no such unit run the same loops on vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.elementwise import GELU, GELU_CUBIC, GELU_SCALE, SILU
from octavo.kernels.cpu.emitter import BF16, F32, I8, I32, WIDTH, Emitter, Value
from octavo.kernels.cpu.jit import has_matrix_unit
from octavo.kernels.cpu.panel_vectors import by_vectors
from octavo.kernels.cpu.primitives import floats, get, primitive, put

PANEL = 32
"""Columns of a panel."""
DEPTH = 32
"""Inputs of a tile."""
TILE_BYTES = 1024
ROWS = 32
"""Rows of a product, at most."""
LINE = 64  # bytes of a tile's row, and of a line of the cache

_AHEAD = 24 * 1024
"""Bytes by which weights are asked for before they are used: enough to hide the way to memory."""

MATRIX_UNIT = has_matrix_unit()

_BESIDE = 2
"""Rows that are written beside each step of a product."""

# tiles by number: sums (row half, column half), inputs (row half), weights (column half)
_SUMS, _INPUTS, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)


# ---------------------------------------------------------------- shapes of tiles


def _configure(rows: int) -> None:
    """Nothing to see: memory is the same afterwards."""


@primitive("vi", _configure)
def configure(e: Emitter, rows: Value) -> None:
    """Get the calling thread's matrix unit ready for products of ``rows`` rows, 1 to 32; 0 turns it off again."""
    if not MATRIX_UNIT:
        return
    off = e.b.icmp_signed("==", rows, e.const(0))
    with e.when(off):
        e.intrinsic("llvm.x86.tilerelease", ir.VoidType())
    with e.when(e.b.not_(off)):
        shape_tiles(e, rows, LINE)


def shape_tiles(e: Emitter, rows: Value, line: int) -> None:
    """Shapes for products of ``rows`` rows, whose tiles of inputs have ``line`` bytes to a row."""
    b = e.b
    shape = ir.ArrayType(I8, LINE)
    with b.goto_entry_block():
        memory = b.alloca(shape)
    memory.align = LINE
    upper = b.select(b.icmp_signed("<", rows, e.const(16)), rows, e.const(16))
    lower = b.sub(rows, upper)
    # a tile of no rows would be no shape; it is not used then
    lower = b.select(b.icmp_signed("==", lower, e.const(0)), e.const(16), lower)
    fields = [ir.Constant(I8, 0)] * LINE
    fields[0] = ir.Constant(I8, 1)
    for tile in range(8):
        fields[16 + 2 * tile] = ir.Constant(I8, line if tile in _INPUTS else LINE)
    for half, count in enumerate((upper, lower)):
        for tile in (*_SUMS[half], _INPUTS[half]):
            fields[48 + tile] = b.trunc(count, I8)
    for tile in _WEIGHTS:
        fields[48 + tile] = ir.Constant(I8, line // 4)
    for place, field in enumerate(fields):
        b.store(field, b.gep(memory, [ir.Constant(I32, 0), ir.Constant(I32, place)]))
    e.intrinsic("llvm.x86.ldtilecfg", ir.VoidType(), b.bitcast(memory, I8.as_pointer()))


# ---------------------------------------------------------------- products


def _panel_product(x: int, stride: int, rows: int, panel: int, steps: int, sums: int, more: int, ahead: int) -> None:
    left = np.stack([get(BF16, x + i * stride, steps * DEPTH) for i in range(rows)])
    tiles = get(BF16, panel, steps * DEPTH * PANEL).reshape(steps, 2, DEPTH // 2, 16, 2)
    right = tiles.transpose(0, 2, 4, 1, 3).reshape(steps * DEPTH, PANEL)
    total = floats(sums, rows * PANEL)
    total[:] = (left @ right).ravel() + (total if more else np.float32(0))


@primitive("viiiiiiii", _panel_product)
def panel_product(
    e: Emitter, x: Value, stride: Value, rows: Value, panel: Value, steps: Value, sums: Value, more: Value, ahead: Value
) -> None:
    """``sums [rows, 32] = x [rows, 32 steps] panel``, in f32, added to what is there if ``more`` is not 0.

    x is bfloat16, its rows ``stride`` bytes apart; ``rows`` is 1 to 32, and what :func:`configure` was told last.
    """
    if MATRIX_UNIT:
        few = e.b.icmp_signed("<=", rows, e.const(16))
        for halves, enough in ((1, few), (2, e.b.not_(few))):
            for fetch, wanted in ((True, "!="), (False, "==")):
                with e.when(e.b.and_(enough, e.b.icmp_signed(wanted, ahead, e.const(0)))):
                    by_tiles(e, "llvm.x86.tdpbf16ps", x, stride, panel, steps, sums, more, halves, fetch)
    else:
        by_vectors(e, x, stride, rows, panel, steps, sums, more, ahead, DEPTH, _AHEAD)


def _panel_product_beside(
    x: int, stride: int, panel: int, steps: int, sums: int, more: int,
    kind: int, held: int, bias: int, target: int, target_stride: int,
) -> None:  # fmt: skip
    _panel_product(x, stride, ROWS, panel, steps, sums, more, 0)
    _write_panel(BF16, kind, held, ROWS, bias, target, target_stride)


@primitive("viiiiiiiiiii", _panel_product_beside)
def panel_product_beside(
    e: Emitter,
    x: Value,
    stride: Value,
    panel: Value,
    steps: Value,
    sums: Value,
    more: Value,
    kind: Value,
    held: Value,
    bias: Value,
    target: Value,
    target_stride: Value,
) -> None:
    """:func:`panel_product` of :data:`ROWS` rows, and beside it :func:`write_panel`, in bfloat16, of as many that
    another product left at ``held``."""
    if not MATRIX_UNIT:
        rows = e.const(ROWS)
        by_vectors(e, x, stride, rows, panel, steps, sums, more, e.const(0), DEPTH, _AHEAD)
        _write_rows(e, e.const(BF16), kind, held, rows, bias, target, target_stride)
        return
    b, v = e.b, e.vector
    added = [e.variable(v.const(-0.0)) for _ in (0, 1)]
    with e.when(b.icmp_signed("!=", bias, e.const(0))):
        for column, variable in enumerate(added):
            variable.set(v.load(BF16, bias, e.const(column * WIDTH)))
    for which in (PLAIN, SILU, GELU):

        def write(i: Value, which: int = which) -> None:
            line, to = e.at(held, i, 4 * PANEL), b.add(target, b.mul(i, target_stride))
            # the next panel's columns of this row, to be written soon
            e.prefetch(b.add(to, e.const(LINE if which == PLAIN else LINE // 2)), LINE, write=True)
            first, second = (
                b.fadd(v.load(F32, line, e.const(column * WIDTH)), variable.get())
                for column, variable in enumerate(added)
            )
            store_columns(e, which, BF16, to, first, second)

        with e.when(b.icmp_signed("==", kind, e.const(which))):
            by_tiles(e, "llvm.x86.tdpbf16ps", x, stride, panel, steps, sums, more, 2, False, write)


def by_tiles(
    e: Emitter,
    instruction: str,
    x: Value,
    stride: Value,
    panel: Value,
    steps: Value,
    sums: Value,
    more: Value,
    halves: int,
    fetch: bool,
    beside: Callable[[Value], None] | None = None,
) -> None:
    """The product of a panel on the matrix unit: ``instruction`` says of what. What ``beside`` emits for each of
    :data:`ROWS` rows is done meanwhile, a row or two at each step: vectors and the matrix unit work side by side."""
    b, void = e.b, ir.VoidType()
    bytes_ = I8.as_pointer()

    def tile(number: int) -> ir.Constant:
        return ir.Constant(I8, number)

    def load(number: int, address: Value, row_bytes: Value, passing: bool = False) -> None:
        # weights pass by the nearest cache: inputs, which are met again at the next panel, stay there
        name = "llvm.x86.tileloaddt164" if passing else "llvm.x86.tileloadd64"
        e.intrinsic(name, void, tile(number), b.inttoptr(address, bytes_), row_bytes)

    inputs = [x, b.add(x, b.mul(stride, e.const(16)))][:halves]
    places = [
        (tile(_SUMS[half][column]), b.inttoptr(b.add(sums, e.const(4 * (half * 16 * PANEL + column * 16))), bytes_))
        for half in range(halves)
        for column in (0, 1)
    ]
    for number, place in places:
        with b.if_else(b.icmp_signed("!=", more, e.const(0))) as (on, anew):
            with on:
                e.intrinsic("llvm.x86.tileloadd64", void, number, place, e.const(4 * PANEL))
            with anew:
                e.intrinsic("llvm.x86.tilezero", void, number)
    with e.loop(e.const(0), steps, 1) as k:
        weights = e.at(panel, k, 2 * TILE_BYTES)
        if fetch:
            e.prefetch(b.add(weights, e.const(_AHEAD)), 2 * TILE_BYTES, near=2)
        load(_WEIGHTS[0], weights, e.const(LINE), passing=True)
        for half, address in enumerate(inputs):
            load(_INPUTS[half], e.at(address, k, LINE), stride)
        load(_WEIGHTS[1], b.add(weights, e.const(TILE_BYTES)), e.const(LINE), passing=True)
        for column in (0, 1):
            for half in range(halves):
                numbers = (_SUMS[half][column], _INPUTS[half], _WEIGHTS[column])
                e.intrinsic(instruction, void, *map(tile, numbers))
        if beside is not None:
            first = b.mul(k, e.const(_BESIDE))
            with e.when(b.icmp_signed("<", first, e.const(ROWS))):
                for i in range(_BESIDE):
                    beside(b.add(first, e.const(i)))
    if beside is not None:
        with e.loop(b.mul(steps, e.const(_BESIDE)), e.const(ROWS), 1) as i:
            beside(i)
    for number, place in places:
        e.intrinsic("llvm.x86.tilestored64", void, number, place, e.const(4 * PANEL))


# ---------------------------------------------------------------- what is written

PLAIN = 2
"""Beside ``SILU`` and ``GELU``: columns are written as they are."""


def _write_panel(dtype: int, kind: int, sums: int, rows: int, bias: int, target: int, stride: int) -> None:
    block = floats(sums, rows * PANEL).reshape(rows, PANEL)
    if bias:
        block = block + get(BF16, bias, PANEL)
    put_columns(kind, dtype, block, target, stride)


def put_columns(kind: int, dtype: int, block: np.ndarray[Any, Any], target: int, stride: int) -> None:
    """The Python form of :func:`store_columns`, for all rows of ``block [rows, 32]``."""
    if kind != PLAIN:
        g, u = block[:, :16], block[:, 16:]
        z = g if kind == SILU else np.float32(GELU_SCALE) * (g + np.float32(GELU_CUBIC) * g * g * g)
        with np.errstate(over="ignore"):
            block = g * u / (1 + np.exp(-z))
    for i, line in enumerate(block):
        put(dtype, target + i * stride, line)


@primitive("viiiiiii", _write_panel)
def write_panel(
    e: Emitter, dtype: Value, kind: Value, sums: Value, rows: Value, bias: Value, target: Value, stride: Value
) -> None:
    """Write ``sums [rows, 32]`` to rows of bfloat16 or f32 that lie ``stride`` bytes apart, ``bias`` [32] (bfloat16)
    added if not 0.

    By ``kind`` the 32 columns themselves, or 16: ``silu(gate) * up`` (or gelu's tanh form) of the first 16 columns and
    the others.
    """
    _write_rows(e, dtype, kind, sums, rows, bias, target, stride)


def _write_rows(
    e: Emitter, dtype: Value, kind: Value, sums: Value, rows: Value, bias: Value, target: Value, stride: Value
) -> None:
    b, v = e.b, e.vector
    biased = b.icmp_signed("!=", bias, e.const(0))
    with e.when(biased):
        added = [v.load(BF16, bias, e.const(column * WIDTH)) for column in (0, 1)]
        with e.loop(e.const(0), rows, 1) as i:
            line = e.at(sums, i, 4 * PANEL)
            for column, addend in enumerate(added):
                place = e.const(column * WIDTH)
                v.store(F32, line, place, b.fadd(v.load(F32, line, place), addend))
    for held in e.per_dtype(dtype, (BF16, F32)):
        for which in (PLAIN, SILU, GELU):
            with e.when(b.icmp_signed("==", kind, e.const(which))), e.loop(e.const(0), rows, 1) as i:
                line, to = e.at(sums, i, 4 * PANEL), b.add(target, b.mul(i, stride))
                first, second = (v.load(F32, line, e.const(column * WIDTH)) for column in (0, 1))
                store_columns(e, which, held, to, first, second)


def store_columns(e: Emitter, kind: int, dtype: int, target: Value, first: Value, second: Value) -> None:
    """Store a row of a panel, 16 columns and 16 more, or by ``kind`` the 16 that come of them."""
    b, v = e.b, e.vector
    if kind == PLAIN:
        v.store(dtype, target, e.const(0), first)
        v.store(dtype, target, e.const(WIDTH), second)
        return
    z = first
    if kind == GELU:
        cubic = v.fma(b.fmul(v.const(GELU_CUBIC), b.fmul(first, first)), first, first)
        z = b.fmul(v.const(GELU_SCALE), cubic)
    v.store(dtype, target, e.const(0), v.sigmoid_times(z, b.fmul(first, second)))


def store_scaled(
    e: Emitter,
    dtype: Value,
    kind: Value,
    rows: Value,
    columns: Callable[[Value], list[Value]],
    x_scales: Value,
    bias: Value,
    target: Value,
    stride: Value,
) -> None:
    """Write rows of ``dtype`` that lie ``stride`` bytes apart: what ``columns`` emits of each (16 columns and 16 more),
    times the row's of ``x_scales``, ``bias`` [32] added if not 0; scales and bias are f32."""
    b, v = e.b, e.vector
    added = [e.variable(v.const(-0.0)) for _ in (0, 1)]
    with e.when(b.icmp_signed("!=", bias, e.const(0))):
        for column, variable in enumerate(added):
            variable.set(v.load(F32, bias, e.const(column * WIDTH)))
    for held in e.per_dtype(dtype):
        for which in (PLAIN, SILU, GELU):
            with e.when(b.icmp_signed("==", kind, e.const(which))), e.loop(e.const(0), rows, 1) as i:
                own = v.splat(e.scalar.load(F32, x_scales, i))
                made = [
                    b.fadd(b.fmul(column, own), variable.get())
                    for column, variable in zip(columns(i), added, strict=True)
                ]
                store_columns(e, which, held, b.add(target, b.mul(i, stride)), *made)
