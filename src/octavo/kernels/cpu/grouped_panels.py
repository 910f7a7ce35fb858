"""The inner loops of products with weights in groups, as primitives (see ``primitives.py``).

A weight of 4 or 8 bits has a scale for each group of its inputs. It lies in panels of 32 columns, as those of
``panels.py`` do, and a panel is one stream: group by group, first the whole numbers of 16 columns, then those of the
other 16, then the 32 scales. Four neighbouring inputs of a column lie together, for that is what processors multiply
and add at a time (Intel's VNNI and AMX), and two such fours of 4 bits share their bytes, so that a mask and a shift
part them.

Activations are whole numbers too, -127 to 127, so the sum within a group is exact and has no order. Sums of groups are
added in float32, always in the order of the groups: however many rows are computed at once, a row's result has the same
bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.dots import add_bytes, bytes_of, dot4
from octavo.kernels.cpu.emitter import F16, F32, FLOAT, I8, I32, INT8, WIDTH, Emitter, Value
from octavo.kernels.cpu.jit import has_int8_matrix_unit
from octavo.kernels.cpu.panels import LINE, PANEL, put_columns, shape_tiles, store_scaled
from octavo.kernels.cpu.primitives import floats, get, primitive, row

HALF = PANEL // 2
CENTRE = {4: 8, 8: 128}
"""Whole numbers are multiplied as unsigned ones: by so much greater than those they stand for."""

INTEGER_TILES = has_int8_matrix_unit()
FEW_ROWS = 6 if INTEGER_TILES else 32
"""As many rows are computed on vectors; more, on the matrix unit."""

_TILE_INPUTS = (64, 32)  # of a row of a tile: the most that divide a group
_READY_INPUTS = 512  # of 16 columns that are made ready for tiles at a time: the nearest cache holds them and the rows
_AHEAD = 24 * 1024  # bytes by which weights are asked for before they are used


def room_bytes(size: int) -> int:
    """What a product needs beside its sums, for groups of ``size``."""
    return HALF * max(_READY_INPUTS, size) + 2 * 16 * LINE


# ---------------------------------------------------------------- activations


def _sum_groups(x: int, groups: int, size: int, centre: int, sums: int) -> None:
    totals = row(INT8, x, groups * size).reshape(groups, size).sum(1, dtype=np.int32)
    floats(sums, groups).view(np.int32)[:] = -centre * totals
    floats(sums + 4 * groups, groups)[:] = totals


@primitive("viiiii", _sum_groups)
def sum_groups(e: Emitter, x: Value, groups: Value, size: Value, centre: Value, sums: Value) -> None:
    """Of a row of signed bytes, for each group of ``size``: at ``sums`` their sum times -``centre``, 32-bit integers,
    and behind these, the sums themselves in f32."""
    b, v = e.b, e.vector
    ones = bytes_of(e, 1)
    plain, factor = e.at(sums, groups, 4), b.trunc(b.neg(centre), I32)
    with e.loop(e.const(0), groups, 1) as group:
        start = b.mul(group, size)
        total = e.variable(v.integer(0))
        quads = ir.VectorType(I32, 8)
        with e.loop(start, b.add(start, size), 32) as i:
            # half a vector: a group may have no more
            low = b.load(b.inttoptr(b.add(x, i), quads.as_pointer()), align=1)
            zeros = ir.Constant(quads, [0] * 8)
            both = b.shuffle_vector(low, zeros, ir.Constant(v.int32, list(range(16))))
            total.set(dot4(e, total.get(), ones, both))
        whole = e.halves(total.get(), b.add)
        b.store(b.mul(whole, factor), b.inttoptr(e.at(sums, group, 4), I32.as_pointer()), align=4)
        e.scalar.store(F32, plain, group, b.sitofp(whole, FLOAT))


# ---------------------------------------------------------------- products


def _configure_groups(rows: int, size: int) -> None:
    """Nothing to see: memory is the same afterwards."""


@primitive("vii", _configure_groups)
def configure_groups(e: Emitter, rows: Value, size: Value) -> None:
    """Get the calling thread's matrix unit ready for products of ``rows`` rows and groups of ``size``."""
    if not INTEGER_TILES:
        return
    whole = e.b.icmp_signed("==", e.b.srem(size, e.const(_TILE_INPUTS[0])), e.const(0))
    for inputs, chosen in zip(_TILE_INPUTS, (whole, e.b.not_(whole)), strict=True):
        with e.when(chosen):
            shape_tiles(e, rows, inputs)


def _whole_numbers(bits: int, address: int, size: int) -> np.ndarray[Any, Any]:
    """Of a panel's group: ``[size, 32]``."""
    if bits == 8:
        fours = row(INT8, address, PANEL * size).reshape(2, size // 4, HALF, 4)
        return fours.transpose(1, 3, 0, 2).reshape(size, PANEL).astype(np.int32)
    pairs = row(INT8, address, PANEL * size // 2).view(np.uint8).reshape(2, size // 8, HALF, 4)
    fours = np.stack((pairs & 15, pairs >> 4), axis=2).reshape(2, size // 4, HALF, 4)
    return fours.transpose(1, 3, 0, 2).reshape(size, PANEL).astype(np.int32) - CENTRE[4]


def _grouped_product(
    x: int, stride: int, rows: int, shifts: int, shifts_stride: int, panel: int, bits: int, scale: int, groups: int,
    size: int, sums: int, room: int, ahead: int,
) -> None:  # fmt: skip
    total = floats(sums, rows * PANEL).reshape(rows, PANEL)
    for group in range(groups):
        left = np.stack([row(INT8, x + i * stride + group * size, size) for i in range(rows)])
        right = _whole_numbers(bits, panel, size)
        panel += size * PANEL * bits // 8
        total += (left.astype(np.int32) @ right).astype(np.float32) * get(scale, panel, PANEL)
        panel += PANEL * (2 if scale == F16 else 4)


@primitive("viiiiiiiiiiiii", _grouped_product)
def grouped_product(
    e: Emitter, x: Value, stride: Value, rows: Value, shifts: Value, shifts_stride: Value, panel: Value, bits: Value,
    scale: Value, groups: Value, size: Value, sums: Value, room: Value, ahead: Value,
) -> None:  # fmt: skip
    """``sums [rows, 32] += x [rows, groups size] panel``, sums in f32.

    ``x`` is int8, and ``shifts`` what :func:`sum_groups` says of it, looked at only for up to :data:`FEW_ROWS` rows;
    each with so many bytes from row to row. The panel's whole numbers have 4 or 8 ``bits``, its scales the dtype
    ``scale``, f32 or f16. ``sums`` has room for 32 rows; what is there of others than ``rows`` is unspecified
    afterwards. ``room`` is for :func:`room_bytes`. More than :data:`FEW_ROWS` rows are what :func:`configure_groups`
    was told last.
    """
    product = _Product(e, x, stride, shifts, shifts_stride, panel, bits, scale, groups, size, sums, room, ahead)
    few = e.b.icmp_signed("<=", rows, e.const(FEW_ROWS))
    with e.when(few):
        product.by_vectors(rows)
    if INTEGER_TILES:
        with e.when(e.b.not_(few)):
            product.by_tiles(rows)


# tiles by number: sums (row half, column half), inputs (row half), weights (column half); as in panels.py
_SUMS, _INPUTS, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)


class _Product:
    """Writes the code of :func:`grouped_product`."""

    def __init__(
        self, e: Emitter, x: Value, stride: Value, shifts: Value, shifts_stride: Value, panel: Value, bits: Value,
        scale: Value, groups: Value, size: Value, sums: Value, room: Value, ahead: Value,
    ) -> None:  # fmt: skip
        b = e.b
        self.e, self.x, self.stride, self.shifts, self.shifts_stride = e, x, stride, shifts, shifts_stride
        self.panel, self.scale = panel, scale
        self.groups, self.size, self.sums, self.room = groups, size, sums, room
        self.nibbles = b.icmp_signed("==", bits, e.const(4))
        self.half_bytes = b.mul(b.mul(size, bits), e.const(HALF // 8))
        self.narrow = b.icmp_signed("==", scale, e.const(F16))
        scale_bytes = b.select(self.narrow, e.const(2 * PANEL), e.const(4 * PANEL))
        self.group_bytes = b.add(b.mul(self.half_bytes, e.const(2)), scale_bytes)
        # what is asked for where nothing is to be is at hand
        self.distance = b.select(b.icmp_signed("!=", ahead, e.const(0)), e.const(_AHEAD), e.const(0))
        whole = b.icmp_signed("==", b.srem(size, e.const(_TILE_INPUTS[0])), e.const(0))
        self.depth = b.select(whole, e.const(_TILE_INPUTS[0]), e.const(_TILE_INPUTS[1]))
        self.depths = b.sdiv(size, self.depth)

    def scale_of(self, group: Value, column: int) -> Value:
        """The scales of a group's 16 columns."""
        e, b, v = self.e, self.e.b, self.e.vector
        place = b.add(b.add(self.panel, b.mul(group, self.group_bytes)), b.mul(self.half_bytes, e.const(2)))
        scale = e.variable(v.const(0.0))
        for kind, chosen in ((F16, self.narrow), (F32, b.not_(self.narrow))):
            with e.when(chosen):
                scale.set(v.load(kind, place, e.const(column * WIDTH)))
        return scale.get()

    def parts(self, place: Value) -> list[Value]:
        """The two vectors of numbers from 0 to 15 that share a vector's bytes."""
        e, b, v = self.e, self.e.b, self.e.vector
        both = b.load(v.pointer(place, I32), align=4)
        mask = bytes_of(e, 15)
        return [b.and_(both, mask), b.and_(b.lshr(both, v.integer(4)), mask)]

    # ------------------------------------------------------------ vectors

    def by_vectors(self, rows: Value) -> None:
        """Four rows at a time, then one."""
        e = self.e
        whole = e.b.and_(rows, e.const(-4))
        for first, last, count in ((e.const(0), whole, 4), (whole, rows, 1)):
            with e.loop(first, last, count) as row:
                self.few_rows(row, count)

    def few_rows(self, first: Value, count: int) -> None:
        """Rows whose sums stay in registers."""
        e, b, v = self.e, self.e.b, self.e.vector
        rows = [b.add(first, e.const(i)) for i in range(count)]
        inputs = [b.add(self.x, b.mul(row, self.stride)) for row in rows]
        shifts = [b.add(self.shifts, b.mul(row, self.shifts_stride)) for row in rows]
        lines = [e.at(self.sums, row, 4 * PANEL) for row in rows]
        columns = (0, 1)
        totals = [[e.variable(v.load(F32, line, e.const(column * WIDTH))) for column in columns] for line in lines]
        with e.loop(e.const(0), self.groups, 1) as group:
            start = b.mul(group, self.size)
            for column in columns:
                counts = [
                    e.variable(v.splat(b.load(b.inttoptr(e.at(shift, group, 4), I32.as_pointer()), align=4)))
                    for shift in shifts
                ]
                weights = self.numbers(group, column)
                self.count(weights, inputs, start, counts)
                e.prefetch(b.add(b.add(weights, self.half_bytes), self.distance), LINE, near=2)
                scale = self.scale_of(group, column)
                for row, whole in zip(totals, counts, strict=True):
                    row[column].set(v.fma(b.sitofp(whole.get(), v.float), scale, row[column].get()))
        for line, row in zip(lines, totals, strict=True):
            for column in columns:
                v.store(F32, line, e.const(column * WIDTH), row[column].get())

    def count(self, weights: Value, inputs: list[Value], start: Value, counts: list[Any]) -> None:
        """A group's exact sums for 16 columns, added to ``counts``."""
        e, b, v = self.e, self.e.b, self.e.vector

        def multiply(numbers: Value, at: Value) -> None:
            for line, total in zip(inputs, counts, strict=True):
                four = b.load(b.inttoptr(b.add(line, at), I32.as_pointer()), align=4)
                total.set(dot4(e, total.get(), numbers, v.splat(four)))

        with e.when(self.nibbles), e.loop(e.const(0), self.size, 32) as step:
            for j in range(4):
                place = b.add(e.at(weights, step, HALF // 2), e.const(j * LINE))
                e.prefetch(b.add(place, self.distance), LINE, near=2)
                for k, part in enumerate(self.parts(place)):
                    multiply(part, b.add(b.add(start, step), e.const(8 * j + 4 * k)))
        with e.when(b.not_(self.nibbles)), e.loop(e.const(0), self.size, 32) as step:
            for j in range(8):
                place = b.add(e.at(weights, step, HALF), e.const(j * LINE))
                e.prefetch(b.add(place, self.distance), LINE, near=2)
                signed = b.load(v.pointer(place, I32), align=4)
                multiply(b.xor(signed, bytes_of(e, CENTRE[8])), b.add(b.add(start, step), e.const(4 * j)))

    # ------------------------------------------------------------ tiles

    def by_tiles(self, rows: Value) -> None:
        """Blocks of inputs, 16 columns of which are made ready at a time for all rows."""
        e, b = self.e, self.e.b
        at_once = b.sdiv(e.const(_READY_INPUTS), self.size)
        at_once = b.select(b.icmp_signed(">", at_once, e.const(1)), at_once, e.const(1))
        first = e.variable(e.const(0))
        passes = b.sdiv(b.add(self.groups, b.sub(at_once, e.const(1))), at_once)
        with e.loop(e.const(0), passes, 1):
            left = b.sub(self.groups, first.get())
            some = b.select(b.icmp_signed("<", at_once, left), at_once, left)
            for column in (0, 1):
                self.make_ready(first.get(), some, column)
                with e.loop(e.const(0), rows, 16) as row:
                    few = b.icmp_signed("<=", b.sub(rows, row), e.const(8))
                    for count, chosen in ((8, few), (16, b.not_(few))):
                        with e.when(chosen):
                            self.tile_rows(row, first.get(), some, column, count)
            first.set(b.add(first.get(), some))

    def numbers(self, group: Value, column: int) -> Value:
        """Where a group's numbers of 16 columns begin in the panel."""
        b = self.e.b
        place = b.add(self.panel, b.mul(group, self.group_bytes))
        return b.add(place, self.half_bytes) if column else place

    def make_ready(self, first: Value, some: Value, column: int) -> None:
        """Numbers of 4 bits become signed bytes, group after group; those of 8 bits are only asked for."""
        e, b, v = self.e, self.e.b, self.e.vector
        shift = bytes_of(e, -CENTRE[4])
        ready_bytes = b.mul(self.size, e.const(HALF))
        with e.loop(e.const(0), some, 1) as i:
            source = self.numbers(b.add(first, i), column)
            target = b.add(self.room, b.mul(i, ready_bytes))
            e.prefetch(b.add(b.add(source, self.half_bytes), self.distance), LINE, near=2)
            with e.when(self.nibbles), e.loop(e.const(0), self.half_bytes, 4 * LINE) as at:
                e.prefetch(b.add(b.add(source, at), self.distance), 4 * LINE, near=2)
                for j in range(4):
                    offset = b.add(at, e.const(j * LINE))
                    place = b.add(target, b.mul(offset, e.const(2)))
                    for k, part in enumerate(self.parts(b.add(source, offset))):
                        b.store(add_bytes(e, part, shift), v.pointer(b.add(place, e.const(k * LINE)), I32), align=4)
            with e.when(b.not_(self.nibbles)), e.loop(e.const(0), self.half_bytes, 4 * LINE) as at:
                e.prefetch(b.add(b.add(source, at), self.distance), 4 * LINE, near=2)

    def tile_rows(self, row: Value, first: Value, some: Value, column: int, count: int) -> None:
        """16 columns of up to ``count`` rows, whose sums stay in registers from group to group. The matrix unit is a
        group ahead of the vectors that scale what comes of it."""
        e, b, v = self.e, self.e.b, self.e.vector
        x = b.add(self.x, b.mul(row, self.stride))
        sums = b.add(e.at(self.sums, row, 4 * PANEL), e.const(column * LINE))
        longest = b.select(b.icmp_signed(">", self.size, e.const(_READY_INPUTS)), self.size, e.const(_READY_INPUTS))
        counts = b.add(self.room, b.mul(longest, e.const(HALF)))

        def place_of(i: Value) -> Value:
            return b.add(counts, b.mul(b.and_(i, e.const(1)), e.const(16 * LINE)))

        def multiply(i: Value) -> None:
            group = b.add(first, i)
            ready = b.add(self.room, b.mul(i, b.mul(self.size, e.const(HALF))))
            weights = b.select(self.nibbles, ready, self.numbers(group, column))
            self.multiply_tile(b.add(x, b.mul(group, self.size)), weights, place_of(i), row)

        multiply(e.const(0))
        totals = [e.variable(v.load(F32, sums, e.const(i * PANEL))) for i in range(count)]
        with e.loop(e.const(0), some, 1) as i:
            after = b.add(i, e.const(1))
            with e.when(b.icmp_signed("<", after, some)):
                multiply(after)
            scale, place = self.scale_of(b.add(first, i), column), place_of(i)
            for j, total in enumerate(totals):
                whole = b.load(v.pointer(b.add(place, e.const(j * LINE)), I32), align=4)
                total.set(v.fma(b.sitofp(whole, v.float), scale, total.get()))
        for j, total in enumerate(totals):
            v.store(F32, sums, e.const(j * PANEL), total.get())

    def multiply_tile(self, x: Value, weights: Value, counts: Value, row: Value) -> None:
        """``counts [16, 16] = x [16, size] weights``, int32, by the tiles for the first 16 rows or the others."""
        e, b, void = self.e, self.e.b, ir.VoidType()
        bytes_ = I8.as_pointer()

        def tile(number: int) -> ir.Constant:
            return ir.Constant(I8, number)

        def load(number: int, address: Value, stride: Value) -> None:
            e.intrinsic("llvm.x86.tileloadd64", void, tile(number), b.inttoptr(address, bytes_), stride)

        upper = b.icmp_signed("==", row, e.const(0))
        for half, chosen in enumerate((upper, b.not_(upper))):
            with e.when(chosen):
                made, inputs, factors = _SUMS[half][0], _INPUTS[half], _WEIGHTS[0]
                e.intrinsic("llvm.x86.tilezero", void, tile(made))
                with e.loop(e.const(0), self.depths, 1) as step:
                    start = b.mul(step, self.depth)
                    load(inputs, b.add(x, start), self.stride)
                    load(factors, b.add(weights, b.mul(start, e.const(HALF))), e.const(LINE))
                    e.intrinsic("llvm.x86.tdpbssd", void, tile(made), tile(inputs), tile(factors))
                e.intrinsic("llvm.x86.tilestored64", void, tile(made), b.inttoptr(counts, bytes_), e.const(LINE))


# ---------------------------------------------------------------- beside the products


def _start_sums(mins: int, dtype: int, groups: int, totals: int, stride: int, rows: int, whole: int, sums: int) -> None:
    block = floats(sums, whole * PANEL).reshape(whole, PANEL)
    block[:] = 0
    if mins:
        left = np.stack([floats(totals + i * stride, groups) for i in range(rows)])
        block[:rows] -= left @ get(dtype, mins, groups * PANEL).reshape(groups, PANEL)


@primitive("viiiiiiii", _start_sums)
def start_sums(
    e: Emitter,
    mins: Value,
    dtype: Value,
    groups: Value,
    totals: Value,
    stride: Value,
    rows: Value,
    whole: Value,
    sums: Value,
) -> None:
    """``sums [rows, 32] = -totals [rows, groups] mins [groups, 32]`` in f32, or zeros where ``mins`` is 0; mins are
    f32 or f16, rows of totals f32 and ``stride`` bytes apart. Sums are zeros from there up to ``whole`` rows: tiles
    are computed with whole, and numbers that are next to nothing would take their time."""
    b, v = e.b, e.vector
    with e.loop(e.const(0), b.mul(whole, e.const(PANEL)), WIDTH) as i:
        v.store(F32, sums, i, v.const(0.0))
    for kind in (F16, F32):
        wanted = b.and_(b.icmp_signed("!=", mins, e.const(0)), b.icmp_signed("==", dtype, e.const(kind)))
        with e.when(wanted), e.loop(e.const(0), rows, 1) as row:
            line, left = e.at(sums, row, 4 * PANEL), b.add(totals, b.mul(row, stride))
            made = [e.variable(v.const(0.0)) for _ in (0, 1)]
            with e.loop(e.const(0), groups, 1) as group:
                total = v.splat(b.fneg(e.scalar.load(F32, left, group)))
                for column, sum_ in enumerate(made):
                    place = b.add(b.mul(group, e.const(PANEL)), e.const(column * WIDTH))
                    sum_.set(v.fma(total, v.load(kind, mins, place), sum_.get()))
            for column, sum_ in enumerate(made):
                v.store(F32, line, e.const(column * WIDTH), sum_.get())


def _write_group_panel(
    dtype: int, kind: int, sums: int, rows: int, x_scales: int, bias: int, target: int, stride: int
) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        block = floats(sums, rows * PANEL).reshape(rows, PANEL) * floats(x_scales, rows)[:, None]
    if bias:
        block = block + floats(bias, PANEL)
    put_columns(kind, dtype, block, target, stride)


@primitive("viiiiiiii", _write_group_panel)
def write_group_panel(
    e: Emitter,
    dtype: Value,
    kind: Value,
    sums: Value,
    rows: Value,
    x_scales: Value,
    bias: Value,
    target: Value,
    stride: Value,
) -> None:
    """Write ``sums [rows, 32]``, f32, times ``x_scales`` [rows] to rows of ``dtype`` that lie ``stride`` bytes apart;
    ``bias`` [32] added if not 0. Scales and bias are f32; ``kind`` as for :func:`write_panel`."""

    def columns(i: Value) -> list[Value]:
        line = e.at(sums, i, 4 * PANEL)
        return [e.vector.load(F32, line, e.const(column * WIDTH)) for column in (0, 1)]

    store_scaled(e, dtype, kind, rows, columns, x_scales, bias, target, stride)
