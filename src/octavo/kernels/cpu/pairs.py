"""What prepares attention's operands for a matrix unit, as primitives (see ``primitives.py``).

A matrix unit multiplies rows by tiles of 16 columns in which two neighbouring inputs lie side by side, as
``panels.py`` describes. Queries and weights become such panels of 32; keys are rows as they are; values must be turned,
so that keys follow one another in a row. All of it is transposing 16 by 16 words of 32 bits, a pair of items each.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.emitter import BF16, F32, I8, I16, I32, INT8, WIDTH, Emitter, Value
from octavo.kernels.cpu.panels import DEPTH, LINE, PANEL, TILE_BYTES
from octavo.kernels.cpu.primitives import floats, get, primitive, put, row

_BF16_BYTES = 2


def _words(address: int, stride: int, rows: int, kind: type, count: int) -> np.ndarray:
    memory = row(INT8, address, (rows - 1) * stride + count * np.dtype(kind).itemsize).view(np.uint8)
    return np.ndarray((rows, count), kind, memory.data, strides=(stride, np.dtype(kind).itemsize))


def _transposed(e: Emitter, rows: list[Value]) -> list[Value]:
    """A square of 16 vectors of 16, its rows become its columns: in four rounds, blocks of 1, 2, 4 and 8 change
    places."""
    for size in (1, 2, 4, 8):
        upper = [i if not i & size else WIDTH + i - size for i in range(WIDTH)]
        lower = [i + size if not i & size else WIDTH + i for i in range(WIDTH)]
        masks = [ir.Constant(ir.VectorType(I32, WIDTH), lanes) for lanes in (upper, lower)]
        for i in range(WIDTH):
            if not i & size:
                pair = rows[i], rows[i + size]
                rows[i], rows[i + size] = (e.b.shuffle_vector(*pair, mask) for mask in masks)
    return rows


def _store_words(e: Emitter, rows: list[Value], target: Value, stride: Value) -> None:
    for i, words in enumerate(rows):
        place = e.b.add(target, e.b.mul(stride, e.const(i)))
        e.b.store(words, e.vector.pointer(place, I32), align=4)


def _transpose_words(source: int, source_stride: int, target: int, stride: int) -> None:
    _words(target, stride, WIDTH, np.int32, WIDTH)[:] = _words(source, source_stride, WIDTH, np.int32, WIDTH).T.copy()


@primitive("viiii", _transpose_words)
def transpose_words(e: Emitter, source: Value, source_stride: Value, target: Value, stride: Value) -> None:
    """16 rows of 16 words of 32 bits become columns; strides are in bytes."""
    b = e.b
    rows = [
        b.load(e.vector.pointer(b.add(source, b.mul(source_stride, e.const(i))), I32), align=4) for i in range(WIDTH)
    ]
    _store_words(e, _transposed(e, rows), target, stride)


def _transpose_pairs(source: int, source_stride: int, target: int, stride: int) -> None:
    _words(target, stride, WIDTH, np.int16, DEPTH)[:] = _words(source, source_stride, DEPTH, np.int16, WIDTH).T.copy()


@primitive("viiii", _transpose_pairs)
def transpose_pairs(e: Emitter, source: Value, source_stride: Value, target: Value, stride: Value) -> None:
    """32 rows of 16 items of 16 bits become columns: 16 rows of 32; strides are in bytes."""
    b = e.b
    lines = [
        b.zext(b.load(e.vector.pointer(b.add(source, b.mul(source_stride, e.const(i))), I16), align=2), e.vector.int32)
        for i in range(DEPTH)
    ]
    rows = [b.or_(even, b.shl(odd, e.vector.integer(16))) for even, odd in zip(lines[::2], lines[1::2], strict=True)]
    _store_words(e, _transposed(e, rows), target, stride)


def _pack_weights(weights: int, keys: int, target: int) -> None:
    rows = floats(weights, keys * PANEL).view(np.uint32) + np.uint32(0x8000)
    tiles = (rows >> 16).astype(np.uint16).reshape(keys // DEPTH, DEPTH // 2, 2, 2, WIDTH).transpose(0, 3, 1, 4, 2)
    _words(target, keys * PANEL * _BF16_BYTES, 1, np.uint16, keys * PANEL)[0] = tiles.ravel()


@primitive("viii", _pack_weights)
def pack_weights(e: Emitter, weights: Value, keys: Value, target: Value) -> None:
    """Weights [keys, 32] of f32 become a panel of bfloat16, rounded to nearest, halves away from zero; ``keys`` is a
    multiple of 32."""
    b, v = e.b, e.vector
    half = v.integer(0x8000)
    with e.loop(e.const(0), b.sdiv(keys, e.const(2)), 1) as pair:
        step = b.sdiv(pair, e.const(DEPTH // 2))
        line = b.srem(pair, e.const(DEPTH // 2))
        place = b.add(e.at(target, step, 2 * TILE_BYTES), b.mul(line, e.const(LINE)))
        for column in (0, 1):
            even, odd = (
                b.add(
                    b.bitcast(
                        v.load(F32, e.at(weights, pair, 2 * 4 * PANEL), e.const(item * PANEL + column * WIDTH)),
                        v.int32,
                    ),
                    half,
                )
                for item in (0, 1)
            )
            both = b.or_(b.lshr(even, v.integer(16)), b.and_(odd, v.integer(-(1 << 16))))
            b.store(both, v.pointer(b.add(place, e.const(column * TILE_BYTES)), I32), align=4)


def _rescale(sums: int, rows: int, factors: int) -> None:
    floats(sums, rows * PANEL).reshape(rows, PANEL)[:] *= floats(factors, PANEL)


@primitive("viii", _rescale)
def rescale(e: Emitter, sums: Value, rows: Value, factors: Value) -> None:
    """``sums [rows, 32] *= factors [32]``, f32; nothing is touched where all factors are 1."""
    b, v = e.b, e.vector
    columns = [v.load(F32, factors, e.const(column * WIDTH)) for column in (0, 1)]
    others = [b.fcmp_unordered("!=", factor, v.const(1.0)) for factor in columns]
    with e.when(e.any(b.or_(*others))), e.loop(e.const(0), rows, 1) as i:
        line = e.at(sums, i, 4 * PANEL)
        for column, factor in enumerate(columns):
            place = e.const(column * WIDTH)
            v.store(F32, line, place, b.fmul(v.load(F32, line, place), factor))


def _int8_to_bf16(source: int, target: int, count: int) -> None:
    put(BF16, target, get(INT8, source, count))


@primitive("viii", _int8_to_bf16)
def int8_to_bf16(e: Emitter, source: Value, target: Value, count: Value) -> None:
    """A row of int8 becomes one of bfloat16, which holds them exactly."""
    b = e.b
    for lanes, i in e.elementwise(count):
        whole = b.sext(b.load(lanes.pointer(b.add(source, i), I8), align=1), lanes.int32)
        bits = b.lshr(b.bitcast(b.sitofp(whole, lanes.float), lanes.int32), lanes.integer(16))
        b.store(b.trunc(bits, lanes.of(I16)), lanes.pointer(e.at(target, i, _BF16_BYTES), I16), align=2)
