"""Operations on rows of floats, as primitives (see ``primitives.py``)."""

from __future__ import annotations

import numpy as np

from octavo.kernels.cpu.emitter import (
    F32,
    FLOAT,
    I8,
    INT8,
    KV_DTYPES,
    Emitter,
    Value,
)
from octavo.kernels.cpu.primitives import floats, get, primitive, put, row
from octavo.kernels.quantized_kv import LOWEST_PEAK


def _widen(dtype: int, source: int, target: int, count: int) -> None:
    floats(target, count)[:] = get(dtype, source, count)


@primitive("viiii", _widen)
def widen(e: Emitter, dtype: Value, source: Value, target: Value, count: Value) -> None:
    """A row of ``dtype`` becomes one of f32; int8 as the numbers they are."""
    for kind in e.per_dtype(dtype, KV_DTYPES):
        for lanes, i in e.elementwise(count):
            lanes.store(F32, target, i, lanes.load(kind, source, i))


def _narrow(dtype: int, source: int, target: int, count: int) -> None:
    put(dtype, target, floats(source, count))


@primitive("viiii", _narrow)
def narrow(e: Emitter, dtype: Value, source: Value, target: Value, count: Value) -> None:
    """A row of f32 becomes one of ``dtype``, rounded to nearest even."""
    for kind in e.per_dtype(dtype):
        for lanes, i in e.elementwise(count):
            lanes.store(kind, target, i, lanes.load(F32, source, i))


def _quantize_row(dtype: int, source: int, target: int, count: int) -> np.float32:
    x = get(dtype, source, count)
    peak = np.abs(x).max()
    if peak < LOWEST_PEAK:
        row(INT8, target, count)[:] = 0
        return np.float32(0)
    with np.errstate(invalid="ignore"):
        row(INT8, target, count)[:] = np.nan_to_num(np.rint(x * (np.float32(127) / peak)))
    return np.float32(peak / np.float32(127))


@primitive("fiiii", _quantize_row)
def quantize_row(e: Emitter, dtype: Value, source: Value, target: Value, count: Value) -> Value:
    """A row of ``dtype`` becomes int8, its largest magnitude 127, rounded to nearest even; returns the scale, by which
    the int8 are the row again. It is not finite where the row is not; what is stored then is unspecified."""
    b = e.b
    zero, whole = e.scalar.const(0.0), e.scalar.const(127.0)
    scale = e.variable(zero)

    def larger(x: Value, y: Value) -> Value:
        return b.select(b.icmp_signed(">", x, y), x, y)

    for kind in e.per_dtype(dtype):
        # magnitudes are compared by their bits: these have the same order, and NaN is above all
        peaks = tuple(e.variable(lanes.integer(0)) for lanes in (e.vector, e.scalar))
        for lanes, i in e.elementwise(count):
            bits = b.and_(b.bitcast(lanes.load(kind, source, i), lanes.int32), lanes.integer(0x7FFFFFFF))
            held = peaks[lanes is e.scalar]
            held.set(larger(bits, held.get()))
        peak = b.bitcast(larger(e.halves(peaks[0].get(), larger), peaks[1].get()), FLOAT)
        is_zero = b.fcmp_ordered("<", peak, e.scalar.const(LOWEST_PEAK))
        factor = b.select(is_zero, zero, b.fdiv(whole, peak))
        for lanes, i in e.elementwise(count):
            # adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits
            shifted = b.fadd(b.fmul(lanes.load(kind, source, i), lanes.splat(factor)), lanes.const(12582912.0))
            place = lanes.pointer(b.add(target, i), I8)
            b.store(b.trunc(b.bitcast(shifted, lanes.int32), lanes.of(I8)), place, align=1)
        scale.set(b.select(is_zero, zero, b.fdiv(peak, whole)))
    return scale.get()


def _fill(target: int, value: float, count: int) -> None:
    floats(target, count)[:] = value


@primitive("vifi", _fill)
def fill(e: Emitter, target: Value, value: Value, count: Value) -> None:
    """A row of f32 becomes ``value`` throughout."""
    for lanes, i in e.elementwise(count):
        lanes.store(F32, target, i, lanes.splat(value))


def _sum_squares(source: int, count: int) -> np.float32:
    return np.float32(np.square(floats(source, count), dtype=np.float32).sum())


@primitive("fii", _sum_squares)
def sum_squares(e: Emitter, source: Value, count: Value) -> Value:
    """The sum of the squares of a row of f32."""
    partial = e.variable(e.vector.const(0.0))
    rest = e.variable(e.scalar.const(0.0))
    for lanes, i in e.elementwise(count):
        x = lanes.load(F32, source, i)
        sum_ = partial if lanes is e.vector else rest
        sum_.set(lanes.fma(x, x, sum_.get()))
    return e.b.fadd(e.total(partial.get()), rest.get())


def _add_round(dtype: int, x: int, residual: int, target: int, count: int) -> None:
    put(dtype, residual, get(dtype, residual, count) + get(dtype, x, count))
    floats(target, count)[:] = get(dtype, residual, count)


@primitive("viiiii", _add_round)
def add_round(e: Emitter, dtype: Value, x: Value, residual: Value, target: Value, count: Value) -> None:
    """``residual += x``, rounded to ``dtype``; ``target`` is the same in f32."""
    for kind in e.per_dtype(dtype):
        for lanes, i in e.elementwise(count):
            added = lanes.rounded(kind, e.b.fadd(lanes.load(kind, residual, i), lanes.load(kind, x, i)))
            lanes.store(kind, residual, i, added)
            lanes.store(F32, target, i, added)


def _scale_weighted(x: int, weight: int, factor: float, offset: float, count: int) -> None:
    row_ = floats(x, count)
    row_[:] = row_ * np.float32(factor) * (np.float32(offset) + floats(weight, count))


@primitive("viiffi", _scale_weighted)
def scale_weighted(e: Emitter, x: Value, weight: Value, factor: Value, offset: Value, count: Value) -> None:
    """``x *= factor * (offset + weight)``, rows of f32."""
    for lanes, i in e.elementwise(count):
        scaled = e.b.fmul(lanes.load(F32, x, i), lanes.splat(factor))
        lanes.store(F32, x, i, e.b.fmul(scaled, e.b.fadd(lanes.splat(offset), lanes.load(F32, weight, i))))


def _scale(x: int, factor: float, count: int) -> None:
    floats(x, count)[:] *= np.float32(factor)


@primitive("vifi", _scale)
def scale(e: Emitter, x: Value, factor: Value, count: Value) -> None:
    """``x *= factor``, a row of f32."""
    for lanes, i in e.elementwise(count):
        lanes.store(F32, x, i, e.b.fmul(lanes.load(F32, x, i), lanes.splat(factor)))


def _multiply_row(x: int, y: int, count: int) -> None:
    floats(x, count)[:] *= floats(y, count)


@primitive("viii", _multiply_row)
def multiply_row(e: Emitter, x: Value, y: Value, count: Value) -> None:
    """``x *= y``, rows of f32."""
    for lanes, i in e.elementwise(count):
        lanes.store(F32, x, i, e.b.fmul(lanes.load(F32, x, i), lanes.load(F32, y, i)))


def _rotate(x: int, cos_sin: int, half: int) -> None:
    a, b = floats(x, half), floats(x + 4 * half, half)
    cos, sin = floats(cos_sin, half), floats(cos_sin + 4 * half, half)
    a[:], b[:] = a * cos - b * sin, b * cos + a * sin


@primitive("viii", _rotate)
def rotate(e: Emitter, x: Value, cos_sin: Value, half: Value) -> None:
    """Rotate the pairs (x[i], x[half + i]) of a row of f32; ``half`` cosines, then as many sines."""
    other, sines = e.at(x, half, 4), e.at(cos_sin, half, 4)
    for lanes, i in e.elementwise(half):
        a, b = lanes.load(F32, x, i), lanes.load(F32, other, i)
        cos, sin = lanes.load(F32, cos_sin, i), lanes.load(F32, sines, i)
        lanes.store(F32, x, i, lanes.fma(a, cos, lanes.negate(e.b.fmul(b, sin))))
        lanes.store(F32, other, i, lanes.fma(b, cos, e.b.fmul(a, sin)))


def _dtype_sum_squares(dtype: int, source: int, count: int) -> np.float32:
    return np.float32(np.square(get(dtype, source, count), dtype=np.float32).sum())


@primitive("fiii", _dtype_sum_squares)
def dtype_sum_squares(e: Emitter, dtype: Value, source: Value, count: Value) -> Value:
    """:func:`sum_squares` of a row of ``dtype``, to the bit."""
    partial = e.variable(e.vector.const(0.0))
    rest = e.variable(e.scalar.const(0.0))
    for kind in e.per_dtype(dtype):
        for lanes, i in e.elementwise(count):
            x = lanes.load(kind, source, i)
            sum_ = partial if lanes is e.vector else rest
            sum_.set(lanes.fma(x, x, sum_.get()))
    return e.b.fadd(e.total(partial.get()), rest.get())


def _turn_row(
    dtype: int, source: int, weight: int, norm: float, cos_sin: int, half: int, factor: float, to: int, target: int
) -> None:
    x = get(dtype, source, 2 * half)
    if weight:
        x = x * np.float32(norm) * (np.float32(0) + get(dtype, weight, 2 * half))
    a, b = x[:half], x[half:]
    cos, sin = floats(cos_sin, half), floats(cos_sin + 4 * half, half)
    put(to, target, np.concatenate((a * cos - b * sin, b * cos + a * sin)) * np.float32(factor))


@primitive("viiifiifii", _turn_row)
def turn_row(
    e: Emitter,
    dtype: Value,
    source: Value,
    weight: Value,
    norm: Value,
    cos_sin: Value,
    half: Value,
    factor: Value,
    to: Value,
    target: Value,
) -> None:
    """What :func:`widen`, :func:`scale_weighted` by ``norm`` and a row of ``dtype`` at ``weight`` (if that is not 0),
    :func:`rotate`, :func:`scale` by ``factor`` and :func:`narrow` to ``to`` (f32, or ``dtype``) do, one after the
    other, to a row of ``2 half`` items; in one go, to the bit."""
    b = e.b
    normed = b.icmp_signed("!=", weight, e.const(0))
    for kind in e.per_dtype(dtype):
        for given in {F32, kind}:
            for is_normed, wanted in ((True, normed), (False, b.not_(normed))):
                with e.when(b.and_(b.icmp_signed("==", to, e.const(given)), wanted)):
                    for lanes, i in e.elementwise(half):
                        places = i, b.add(i, half)
                        x, y = (lanes.load(kind, source, place) for place in places)
                        if is_normed:
                            by = lanes.splat(norm)
                            x, y = (
                                b.fmul(b.fmul(each, by), b.fadd(lanes.const(0.0), lanes.load(kind, weight, place)))
                                for each, place in zip((x, y), places, strict=True)
                            )
                        cos, sin = (lanes.load(F32, cos_sin, place) for place in places)
                        turned = (
                            lanes.fma(x, cos, lanes.negate(b.fmul(y, sin))),
                            lanes.fma(y, cos, b.fmul(x, sin)),
                        )
                        for each, place in zip(turned, places, strict=True):
                            lanes.store(given, target, place, b.fmul(each, lanes.splat(factor)))


def _scale_narrow(dtype: int, x: int, factor: float, target: int, count: int) -> None:
    put(dtype, target, floats(x, count) * np.float32(factor))


@primitive("viifii", _scale_narrow)
def scale_narrow(e: Emitter, dtype: Value, x: Value, factor: Value, target: Value, count: Value) -> None:
    """A row of f32, times ``factor``, becomes one of ``dtype``."""
    for kind in e.per_dtype(dtype):
        for lanes, i in e.elementwise(count):
            lanes.store(kind, target, i, e.b.fmul(lanes.load(F32, x, i), lanes.splat(factor)))


def _gate(dtype: int, kind: int, gate: int, up: int, target: int, count: int) -> None:
    g, u = get(dtype, gate, count), get(dtype, up, count)
    with np.errstate(over="ignore"):
        if kind == SILU:
            put(dtype, target, g * u / (1 + np.exp(-g)))
        else:
            z = np.float32(GELU_SCALE) * (g + np.float32(GELU_CUBIC) * g * g * g)
            put(dtype, target, g * u / (1 + np.exp(-z)))


SILU, GELU = range(2)
GELU_CUBIC = 0.044715
GELU_SCALE = 2 * 0.7978845608028654
"""2 sqrt(2 / pi): 0.5 (1 + tanh z) is 1 / (1 + exp(-2 z))."""


@primitive("viiiiii", _gate)
def gate(e: Emitter, dtype: Value, kind: Value, gate: Value, up: Value, target: Value, count: Value) -> None:
    """``target = silu(gate) * up`` or gelu's tanh form, rows of ``dtype``."""
    for which in (SILU, GELU):
        with e.when(e.b.icmp_signed("==", kind, e.const(which))):
            for held in e.per_dtype(dtype):
                for lanes, i in e.elementwise(count):
                    g, u = lanes.load(held, gate, i), lanes.load(held, up, i)
                    z = g
                    if which == GELU:
                        cubic = lanes.fma(e.b.fmul(lanes.const(GELU_CUBIC), e.b.fmul(g, g)), g, g)
                        z = e.b.fmul(lanes.const(GELU_SCALE), cubic)
                    lanes.store(held, target, i, lanes.sigmoid_times(z, e.b.fmul(g, u)))
