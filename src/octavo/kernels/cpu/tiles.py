"""The inner loops of attention, as primitives (see ``primitives.py``).

Two shapes. A *decode* reads keys and values of one head straight from a block, against the few query heads that share
them. A *tile* is a small matrix product between keys widened to f32 and up to 64 queries that lie one beside the
other, one to a vector lane; all that happens to a query there happens in its lane, in an order that does not depend
on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.emitter import F32, FLOAT, I32, ITEM_SIZE, KV_DTYPES, WIDTH, Emitter, Lanes, Value, Variable
from octavo.kernels.cpu.jit import host_features
from octavo.kernels.cpu.primitives import floats, get, primitive

MAX_GROUP = 4
"""Query heads that one call of :func:`dots` or :func:`weighted_sum` serves."""

TILE_ROWS = 8
"""Rows of a product are computed in multiples of this: operands are padded to it."""

NO_WINDOW = 1 << 30
"""Stands for "sees all the past"."""

LOWEST = -3.0e38
"""Stands for the largest score of a query that has seen no key yet."""

# how much is kept in registers at once: 32 of 16 floats with AVX-512, half as many of half the size without
_WIDE = "avx512f" in host_features()
_DOT_KEYS = 4
_SUM_VECTORS = 4 if _WIDE else 1
_ROWS = 8 if _WIDE else 4
_VECTORS = 2 if _WIDE else 1


def _mask(places: Iterable[int]) -> ir.Constant:
    chosen = list(places)
    return ir.Constant(ir.VectorType(I32, len(chosen)), chosen)


def _capped(lanes: Lanes, score: Value, softcap: Value) -> Value:
    cap = lanes.splat(softcap)
    return lanes.b.fmul(cap, lanes.tanh(lanes.b.fdiv(score, cap)))


# ---------------------------------------------------------------- decode


def _dots(
    dtype: int,
    q: int,
    q_stride: int,
    group: int,
    k: int,
    keys: int,
    dim: int,
    scores: int,
    score_stride: int,
    ahead: int,
) -> None:
    rows = get(dtype, k, keys * dim).reshape(keys, dim)
    for g in range(group):
        floats(scores + g * score_stride, keys)[:] = rows @ floats(q + g * q_stride, dim)


@primitive("viiiiiiiiii", _dots)
def dots(
    e: Emitter,
    dtype: Value,
    q: Value,
    q_stride: Value,
    group: Value,
    k: Value,
    keys: Value,
    dim: Value,
    scores: Value,
    score_stride: Value,
    ahead: Value,
) -> None:
    """Scores of ``keys`` keys of ``dtype``, one after the other at ``k``, with each of ``group`` queries of f32.

    Meanwhile as many bytes are asked for at ``ahead``: spread among the products, for a burst would have them wait.
    ``dim`` is a multiple of 16; strides are in bytes. A score's arithmetic is the same whatever its place.
    """
    b, v = e.b, e.vector
    quad = ir.VectorType(FLOAT, 4)

    def products(kind: int, heads: int, first: Value, count: int) -> list[list[Value]]:
        sums = [[e.variable(v.const(0.0)) for _ in range(count)] for _ in range(heads)]
        with e.loop(e.const(0), dim, WIDTH) as c:
            place = e.at(ahead, b.add(b.mul(first, dim), b.mul(c, e.const(count))), ITEM_SIZE[kind])
            e.prefetch(place, count * WIDTH * ITEM_SIZE[kind])
            lines = [
                v.load(kind, e.at(k, b.mul(b.add(first, e.const(i)), dim), ITEM_SIZE[kind]), c) for i in range(count)
            ]
            for g in range(heads):
                query = v.load(F32, b.add(q, b.mul(e.const(g), q_stride)), c)
                for total, line in zip(sums[g], lines, strict=True):
                    total.set(v.fma(query, line, total.get()))
        return [[total.get() for total in row] for row in sums]

    def half(x: Value, y: Value, size: int) -> Value:
        """Add the halves of each run of ``size`` floats, of x and then of y."""
        starts = range(0, 2 * WIDTH, size)
        low = [start + i for start in starts for i in range(size // 2)]
        return b.fadd(
            b.shuffle_vector(x, y, _mask(low)), b.shuffle_vector(x, y, _mask(place + size // 2 for place in low))
        )

    def four_totals(x: list[Value]) -> Value:
        """The sums of four vectors, each in the order of ``Emitter.total``."""
        y = half(half(x[0], x[1], 16), half(x[2], x[3], 16), 8)
        for distance in (2, 1):
            y = b.fadd(y, b.shuffle_vector(y, y, _mask(min(i + distance, WIDTH - 1) for i in range(WIDTH))))
        return b.shuffle_vector(y, y, _mask(range(0, WIDTH, 4)))

    for heads in range(1, MAX_GROUP + 1):
        with e.when(b.icmp_signed("==", group, e.const(heads))):
            for kind in e.per_dtype(dtype, KV_DTYPES):
                whole = b.and_(keys, e.const(-_DOT_KEYS))
                with e.loop(e.const(0), whole, _DOT_KEYS) as j:
                    for g, row in enumerate(products(kind, heads, j, _DOT_KEYS)):
                        target = e.at(b.add(scores, b.mul(e.const(g), score_stride)), j, 4)
                        b.store(four_totals(row), b.inttoptr(target, quad.as_pointer()), align=4)
                with e.loop(whole, keys, 1) as j:
                    for g, row in enumerate(products(kind, heads, j, 1)):
                        target = b.add(scores, b.mul(e.const(g), score_stride))
                        e.scalar.store(F32, target, j, e.total(row[0]))


def _weighted_sum(
    dtype: int, p: int, p_stride: int, group: int, v: int, keys: int, dim: int, target: int, stride: int, ahead: int
) -> None:
    rows = get(dtype, v, keys * dim).reshape(keys, dim)
    for g in range(group):
        floats(target + g * stride, dim)[:] += floats(p + g * p_stride, keys) @ rows


@primitive("viiiiiiiiii", _weighted_sum)
def weighted_sum(
    e: Emitter,
    dtype: Value,
    p: Value,
    p_stride: Value,
    group: Value,
    values: Value,
    keys: Value,
    dim: Value,
    target: Value,
    stride: Value,
    ahead: Value,
) -> None:
    """Add to each of ``group`` rows of f32 the sum of ``keys`` values of ``dtype``, weighted by its row of ``p``.

    ``dim`` is a multiple of 16; strides are in bytes. Keys are added one after the other. Meanwhile as many bytes are
    asked for at ``ahead``.
    """
    b, v = e.b, e.vector

    def columns(kind: int, heads: int, first: Value, vectors: int) -> None:
        rows = [b.add(target, b.mul(e.const(g), stride)) for g in range(heads)]
        places = [b.add(first, e.const(WIDTH * i)) for i in range(vectors)]
        sums = [[e.variable(v.load(F32, row, place)) for place in places] for row in rows]
        with e.loop(e.const(0), keys, 1) as j:
            line = e.at(values, b.mul(j, dim), ITEM_SIZE[kind])
            e.prefetch(e.at(ahead, b.add(b.mul(j, dim), first), ITEM_SIZE[kind]), vectors * WIDTH * ITEM_SIZE[kind])
            lines = [v.load(kind, line, place) for place in places]
            for g in range(heads):
                weight = v.splat(e.scalar.load(F32, b.add(p, b.mul(e.const(g), p_stride)), j))
                for total, x in zip(sums[g], lines, strict=True):
                    total.set(v.fma(weight, x, total.get()))
        for row, totals in zip(rows, sums, strict=True):
            for place, total in zip(places, totals, strict=True):
                v.store(F32, row, place, total.get())

    step = WIDTH * _SUM_VECTORS
    for heads in range(1, MAX_GROUP + 1):
        with e.when(b.icmp_signed("==", group, e.const(heads))):
            for kind in e.per_dtype(dtype, KV_DTYPES):
                whole = b.sub(dim, b.urem(dim, e.const(step)))
                with e.loop(e.const(0), whole, step) as c:
                    columns(kind, heads, c, _SUM_VECTORS)
                if _SUM_VECTORS > 1:
                    with e.loop(whole, dim, WIDTH) as c:
                        columns(kind, heads, c, 1)


def _softmax(scores: int, keys: int, softcap: float, result: int) -> None:
    row = floats(scores, keys)
    if softcap > 0:
        row[:] = np.float32(softcap) * np.tanh(row / np.float32(softcap))
    top = row.max()
    row[:] = np.exp(row - top)
    floats(result, 2)[:] = top, row.sum()


@primitive("viifi", _softmax)
def softmax(e: Emitter, scores: Value, keys: Value, softcap: Value, result: Value) -> None:
    """Scores become exp(score - largest), after capping where ``softcap`` is above 0; ``result`` is the largest, and
    the sum."""
    b = e.b
    infinity = float("-inf")
    tops = (e.variable(e.vector.const(infinity)), e.variable(e.scalar.const(infinity)))
    with e.when(b.fcmp_ordered(">", softcap, e.scalar.const(0.0))):
        for lanes, i in e.elementwise(keys):
            lanes.store(F32, scores, i, _capped(lanes, lanes.load(F32, scores, i), softcap))
    for lanes, i in e.elementwise(keys):
        top = tops[lanes is e.scalar]
        top.set(lanes.maximum(top.get(), lanes.load(F32, scores, i)))
    largest = e.scalar.maximum(
        e.halves(tops[0].get(), lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y)), tops[1].get()
    )
    sums = (e.variable(e.vector.const(0.0)), e.variable(e.scalar.const(0.0)))
    for lanes, i in e.elementwise(keys):
        total = sums[lanes is e.scalar]
        weight = lanes.exp(b.fsub(lanes.load(F32, scores, i), lanes.splat(largest)))
        lanes.store(F32, scores, i, weight)
        total.set(b.fadd(total.get(), weight))
    e.scalar.store(F32, result, e.const(0), largest)
    e.scalar.store(F32, result, e.const(1), b.fadd(e.total(sums[0].get()), sums[1].get()))


def _blend(x: int, a: float, y: int, c: float, count: int) -> None:
    floats(x, count)[:] = floats(x, count) * np.float32(a) + floats(y, count) * np.float32(c)


@primitive("vififi", _blend)
def blend(e: Emitter, x: Value, a: Value, y: Value, c: Value, count: Value) -> None:
    """``x = a x + c y``, rows of f32."""
    for lanes, i in e.elementwise(count):
        scaled = e.b.fmul(lanes.load(F32, y, i), lanes.splat(c))
        lanes.store(F32, x, i, lanes.fma(lanes.load(F32, x, i), lanes.splat(a), scaled))


def _exponential(x: float) -> np.float32:
    return np.exp(np.float32(x))


@primitive("ff", _exponential)
def exponential(e: Emitter, x: Value) -> Value:
    """e to the x."""
    return e.scalar.exp(x)


# ---------------------------------------------------------------- tiles


def _spread(source: int, target: int, stride: int, count: int) -> None:
    floats(target, (count - 1) * stride + 1)[::stride] = floats(source, count)


@primitive("viiii", _spread)
def spread(e: Emitter, source: Value, target: Value, stride: Value, count: Value) -> None:
    """A row of f32 becomes a column: ``target[i * stride] = source[i]``."""
    with e.loop(e.const(0), count, 1) as i:
        e.scalar.store(F32, target, e.b.mul(i, stride), e.scalar.load(F32, source, i))


def _collect(source: int, stride: int, target: int, count: int) -> None:
    floats(target, count)[:] = floats(source, (count - 1) * stride + 1)[::stride]


@primitive("viiii", _collect)
def collect(e: Emitter, source: Value, stride: Value, target: Value, count: Value) -> None:
    """A column of f32 becomes a row: ``target[i] = source[i * stride]``."""
    with e.loop(e.const(0), count, 1) as i:
        e.scalar.store(F32, target, i, e.scalar.load(F32, source, e.b.mul(i, stride)))


def _product(
    a: int,
    row_stride: int,
    depth_stride: int,
    rows: int,
    depth: int,
    b: int,
    c: int,
    stride: int,
    vectors: int,
    alpha: int,
) -> None:
    width = vectors * WIDTH
    left = np.lib.stride_tricks.as_strided(
        floats(a, (rows - 1) * row_stride + (depth - 1) * depth_stride + 1),
        (rows, depth),
        (4 * row_stride, 4 * depth_stride),
    )
    right = floats(b, (depth - 1) * stride + width)
    right = np.lib.stride_tricks.as_strided(right, (depth, width), (4 * stride, 4))
    target = np.lib.stride_tricks.as_strided(floats(c, (rows - 1) * stride + width), (rows, width), (4 * stride, 4))
    kept = target * floats(alpha, width) if alpha else np.float32(0)
    target[:] = kept + left @ right


@primitive("viiiiiiiiii", _product)
def product(
    e: Emitter,
    a: Value,
    row_stride: Value,
    depth_stride: Value,
    rows: Value,
    depth: Value,
    right: Value,
    c: Value,
    stride: Value,
    vectors: Value,
    alpha: Value,
) -> None:
    """``c = c alpha + a b`` in f32, or ``c = a b`` where ``alpha`` is 0.

    a [rows, depth] has strides ``row_stride`` and ``depth_stride``; b [depth, 16 vectors] and c [rows, 16 vectors] have
    rows ``stride`` apart, all in items; alpha holds a factor for each column. ``rows`` is a multiple of ``TILE_ROWS``.
    An element's products are added one after the other.
    """
    b, v = e.b, e.vector

    def block(first_row: Value, column: Value, width: int) -> None:
        places = [b.add(column, e.const(WIDTH * i)) for i in range(width)]
        targets = [e.at(c, b.mul(b.add(first_row, e.const(r)), stride), 4) for r in range(_ROWS)]
        sums: list[list[Variable]] = [[e.variable(v.const(0.0)) for _ in places] for _ in targets]
        with e.when(b.icmp_signed("!=", alpha, e.const(0))):
            factors = [v.load(F32, alpha, place) for place in places]
            for target, row in zip(targets, sums, strict=True):
                for place, factor, total in zip(places, factors, row, strict=True):
                    total.set(b.fmul(v.load(F32, target, place), factor))
        lines = [e.at(a, b.mul(b.add(first_row, e.const(r)), row_stride), 4) for r in range(_ROWS)]
        with e.loop(e.const(0), depth, 1) as k:
            line = e.at(right, b.mul(k, stride), 4)
            operands = [v.load(F32, line, place) for place in places]
            offset = b.mul(k, depth_stride)
            for address, row in zip(lines, sums, strict=True):
                factor = v.splat(e.scalar.load(F32, address, offset))
                for operand, total in zip(operands, row, strict=True):
                    total.set(v.fma(factor, operand, total.get()))
        for target, row in zip(targets, sums, strict=True):
            for place, total in zip(places, row, strict=True):
                v.store(F32, target, place, total.get())

    width = b.mul(vectors, e.const(WIDTH))
    step = WIDTH * _VECTORS
    whole = b.sub(width, b.urem(width, e.const(step)))
    with e.loop(e.const(0), rows, _ROWS) as i:
        with e.loop(e.const(0), whole, step) as column:
            block(i, column, _VECTORS)
        if _VECTORS > 1:
            with e.loop(whole, width, WIDTH) as column:
                block(i, column, 1)


def _tile_softmax(
    scores: int,
    stride: int,
    keys: int,
    vectors: int,
    first_key: int,
    positions: int,
    window: int,
    masked: int,
    softcap: float,
    state: int,
) -> None:
    width = vectors * WIDTH
    s = np.lib.stride_tricks.as_strided(floats(scores, (keys - 1) * stride + width), (keys, width), (4 * stride, 4))
    if softcap > 0:
        s[:] = np.float32(softcap) * np.tanh(s / np.float32(softcap))
    if masked:
        position = floats(positions, width).view(np.int32)
        key = first_key + np.arange(keys)[:, None]
        s[(key > position) | (key <= position - window)] = -np.inf
    top, total, alpha = (floats(state + 4 * stride * i, width) for i in range(3))
    largest = np.maximum(np.maximum(top, s.max(0)), np.float32(LOWEST))
    alpha[:] = np.exp(top - largest)
    s[:] = np.exp(s - largest)
    total[:] = total * alpha + s.sum(0)
    top[:] = largest


@primitive("viiiiiiiifi", _tile_softmax)
def tile_softmax(
    e: Emitter,
    scores: Value,
    stride: Value,
    keys: Value,
    vectors: Value,
    first_key: Value,
    positions: Value,
    window: Value,
    masked: Value,
    softcap: Value,
    state: Value,
) -> None:
    """One step of online softmax over scores [keys, 16 vectors], a query to a column, rows ``stride`` items apart.

    Scores become weights. ``state`` holds three rows of ``stride`` floats: the largest score so far, the sum of
    weights, and (written here) the factor by which what was summed before must be scaled. Where ``masked`` is not 0,
    column i sees keys ``positions[i] - window + 1 .. positions[i]`` only (int32); the first key is ``first_key``.
    """
    b, v = e.b, e.vector
    totals_at, alpha_at = e.at(state, stride, 4), e.at(state, b.mul(stride, e.const(2)), 4)
    is_capped = b.fcmp_ordered(">", softcap, e.scalar.const(0.0))
    is_masked = b.icmp_signed("!=", masked, e.const(0))
    window32 = v.splat(b.trunc(window, I32))
    with e.loop(e.const(0), b.mul(vectors, e.const(WIDTH)), WIDTH) as column:
        before = v.load(F32, state, column)
        with e.when(is_capped), e.loop(e.const(0), keys, 1) as j:
            line = e.at(scores, b.mul(j, stride), 4)
            v.store(F32, line, column, _capped(v, v.load(F32, line, column), softcap))
        with e.when(is_masked):
            position = b.load(v.pointer(e.at(positions, column, 4), I32), align=4)
            oldest = b.sub(position, window32)
            with e.loop(e.const(0), keys, 1) as j:
                line = e.at(scores, b.mul(j, stride), 4)
                key = v.splat(b.trunc(b.add(first_key, j), I32))
                hidden = b.or_(b.icmp_signed(">", key, position), b.icmp_signed("<=", key, oldest))
                v.store(F32, line, column, b.select(hidden, v.const(float("-inf")), v.load(F32, line, column)))
        top = e.variable(before)
        with e.loop(e.const(0), keys, 1) as j:
            top.set(v.maximum(top.get(), v.load(F32, e.at(scores, b.mul(j, stride), 4), column)))
        largest = v.maximum(top.get(), v.const(LOWEST))
        alpha = v.exp(b.fsub(before, largest))
        total = e.variable(v.const(0.0))
        with e.loop(e.const(0), keys, 1) as j:
            line = e.at(scores, b.mul(j, stride), 4)
            weight = v.exp(b.fsub(v.load(F32, line, column), largest))
            v.store(F32, line, column, weight)
            total.set(b.fadd(total.get(), weight))
        v.store(F32, state, column, largest)
        v.store(F32, alpha_at, column, alpha)
        v.store(F32, totals_at, column, v.fma(v.load(F32, totals_at, column), alpha, total.get()))
