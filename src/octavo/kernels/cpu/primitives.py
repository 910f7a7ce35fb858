"""What kernels are made of: loads and stores by address, atomic counters, and operations on rows of floats.

A primitive is written twice: as LLVM code, compiled into the kernels that call it, and as plain Python, which tests
compare the first with and which runs where the compiler is disabled. Arguments are addresses and sizes as 64-bit
integers; ``f32`` rows lie in scratch memory, other rows have one of the dtype codes of ``emitter.py``.
"""

from __future__ import annotations

import ctypes
import inspect
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels import noise
from octavo.kernels.cpu.emitter import (
    BF16,
    CACHE_LINE,
    F16,
    F32,
    FLOAT,
    I8,
    I32,
    I64,
    INT8,
    ITEM_SIZE,
    KV_DTYPES,
    Emitter,
    Value,
)
from octavo.kernels.cpu.jit import DISABLED
from octavo.kernels.quantized_kv import LOWEST_PEAK

_TYPES: dict[str, tuple[str, ir.Type]] = {
    "i": ("int64", I64),
    "f": ("float32", FLOAT),
    "d": ("float64", ir.DoubleType()),
    "v": ("void", ir.VoidType()),
}
"""Numba's name of each type, and LLVM's."""


class Primitive:
    """The two forms of one operation."""

    def __init__(self, signature: str, python: Callable[..., Any], emit: Callable[..., Any]) -> None:
        self.signature = signature
        self.python = python
        self.emit = emit
        self.name = python.__name__

    def define(self, module: ir.Module) -> ir.Function:
        """The operation as a function of ``module``."""
        name = f"octavo_{self.name}"
        known = module.globals.get(name)
        if known is not None:
            return known
        result, *arguments = (_TYPES[letter][1] for letter in self.signature)
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        function.linkage = "linkonce_odr"
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        value = self.emit(Emitter(builder), *function.args)
        if value is None:
            builder.ret_void()
        else:
            builder.ret(value)
        return function

    def typed(self) -> Any:
        """The operation as Numba calls it."""
        from numba import types
        from numba.extending import intrinsic

        result, *arguments = (getattr(types, _TYPES[letter][0]) for letter in self.signature)
        signature = result(*arguments)

        def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:
            returned = builder.call(self.define(builder.module), values)
            return context.get_dummy_value() if self.signature[0] == "v" else returned

        def typing(_: Any, *__: Any) -> Any:
            return signature, codegen

        typing.__name__ = self.name
        # Numba goes by the signature it sees: the typing context, then one name for each argument
        names = ["context", *(f"argument_{i}" for i in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typing.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        return intrinsic(typing)


PRIMITIVES: dict[str, Primitive] = {}


def primitive(signature: str, python: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a primitive of its two forms; ``signature`` is the result's letter, then the arguments': i, f, d or v."""

    def made(emit: Callable[..., Any]) -> Any:
        entry = Primitive(signature, python, emit)
        PRIMITIVES[entry.name] = entry
        return python if DISABLED else entry

    return made


# ---------------------------------------------------------------- memory as arrays, for the Python forms


_NUMPY: dict[int, Any] = {F32: np.float32, BF16: np.uint16, F16: np.float16, INT8: np.int8}


def row(dtype: int, address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` items at ``address``; bfloat16 as its bits."""
    size = max(count, 0) * ITEM_SIZE[dtype]
    memory: Any = (ctypes.c_char * size).from_address(address) if size else bytearray()
    return np.frombuffer(memory, _NUMPY[dtype])


def floats(address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` floats at ``address``."""
    return row(F32, address, count)


def get(dtype: int, address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` items at ``address`` as floats."""
    items = row(dtype, address, count)
    if dtype == BF16:
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(np.float32)


def put(dtype: int, address: int, values: np.ndarray[Any, Any]) -> None:
    """Store floats at ``address``, rounded to nearest even."""
    target = row(dtype, address, len(values))
    if dtype != BF16:
        with np.errstate(over="ignore"):
            target[:] = values
        return
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16
    target[:] = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)


# ---------------------------------------------------------------- words


def _load_i64(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _load_i32(address: int) -> int:
    return ctypes.c_int32.from_address(address).value


def _load_f64(address: int) -> float:
    return ctypes.c_double.from_address(address).value


def _load_f32(address: int) -> np.float32:
    return np.float32(ctypes.c_float.from_address(address).value)


def _store_i64(address: int, value: int) -> None:
    ctypes.c_int64.from_address(address).value = value


def _store_i32(address: int, value: int) -> None:
    ctypes.c_int32.from_address(address).value = value


def _store_f32(address: int, value: float) -> None:
    ctypes.c_float.from_address(address).value = value


def _fetch_add(address: int, value: int) -> int:
    before = _load_i64(address)
    _store_i64(address, before + value)
    return before


def _wait_for(address: int, value: int) -> None:
    """Nothing to wait for: without a compiler there is one thread."""


def _as_f32(value: float) -> np.float32:
    return np.float32(value)


@primitive("ii", _load_i64)
def load_i64(e: Emitter, address: Value) -> Value:
    """The 64-bit integer at ``address``."""
    return e.b.load(e.b.inttoptr(address, I64.as_pointer()), align=8)


@primitive("ii", _load_i32)
def load_i32(e: Emitter, address: Value) -> Value:
    """The 32-bit integer at ``address``."""
    return e.b.sext(e.b.load(e.b.inttoptr(address, I32.as_pointer()), align=4), I64)


@primitive("di", _load_f64)
def load_f64(e: Emitter, address: Value) -> Value:
    """The double at ``address``."""
    return e.b.load(e.b.inttoptr(address, ir.DoubleType().as_pointer()), align=8)


@primitive("fi", _load_f32)
def load_f32(e: Emitter, address: Value) -> Value:
    """The float at ``address``."""
    return e.b.load(e.b.inttoptr(address, FLOAT.as_pointer()), align=4)


@primitive("vii", _store_i64)
def store_i64(e: Emitter, address: Value, value: Value) -> None:
    """Store a 64-bit integer."""
    e.b.store(value, e.b.inttoptr(address, I64.as_pointer()), align=8)


@primitive("vii", _store_i32)
def store_i32(e: Emitter, address: Value, value: Value) -> None:
    """Store the low half of a 64-bit integer."""
    e.b.store(e.b.trunc(value, I32), e.b.inttoptr(address, I32.as_pointer()), align=4)


@primitive("vif", _store_f32)
def store_f32(e: Emitter, address: Value, value: Value) -> None:
    """Store a float."""
    e.b.store(value, e.b.inttoptr(address, FLOAT.as_pointer()), align=4)


@primitive("iii", _fetch_add)
def fetch_add(e: Emitter, address: Value, value: Value) -> Value:
    """Add to a 64-bit counter that threads share, and return what it held; orders memory on both sides."""
    return e.b.atomic_rmw("add", e.b.inttoptr(address, I64.as_pointer()), value, "acq_rel")


_SPINS = 4000
"""Looks at a counter, of some 10 to 40 nanoseconds each, before the core is offered to others."""


@primitive("vii", _wait_for)
def wait_for(e: Emitter, address: Value, value: Value) -> None:
    """Wait until other threads have brought the 64-bit counter at ``address`` up to ``value``; what they wrote before
    is seen after."""
    b = e.b
    pointer = b.inttoptr(address, I64.as_pointer())
    head, body, end = (b.append_basic_block(name) for name in ("wait.head", "wait.body", "wait.end"))
    spins = e.variable(e.const(0))
    b.branch(head)
    b.position_at_end(head)
    b.cbranch(b.icmp_signed("<", b.load_atomic(pointer, "acquire", 8), value), body, end)
    b.position_at_end(body)
    if platform.machine() in ("x86_64", "AMD64"):
        e.intrinsic("llvm.x86.sse2.pause", ir.VoidType())
    spins.set(b.add(spins.get(), e.const(1)))
    if platform.system() in ("Linux", "Darwin"):
        with e.when(b.icmp_signed(">", spins.get(), e.const(_SPINS))):
            e.intrinsic("sched_yield", I32)
    b.branch(head)
    b.position_at_end(end)


@primitive("fd", _as_f32)
def as_f32(e: Emitter, value: Value) -> Value:
    """A double rounded to float."""
    return e.b.fptrunc(value, FLOAT)


def _finalize(z: int) -> int:
    word = noise.finalize(z)
    return word - (1 << 64) if word >> 63 else word


@primitive("ii", _finalize)
def finalize(e: Emitter, z: Value) -> Value:
    """SplitMix64's output function on a 64-bit word."""
    for shift, factor in ((30, noise.FINALIZE_1), (27, noise.FINALIZE_2)):
        z = e.b.mul(e.b.xor(z, e.b.lshr(z, e.const(shift))), e.const(factor))
    return e.b.xor(z, e.b.lshr(z, e.const(31)))


def _copy_bytes(source: int, target: int, count: int) -> None:
    ctypes.memmove(target, source, count)


@primitive("viii", _copy_bytes)
def copy_bytes(e: Emitter, source: Value, target: Value, count: Value) -> None:
    """Copy ``count`` bytes; the two may overlap."""
    pointer = ir.IntType(8).as_pointer()
    moved = e.b.module.globals.get("memmove")
    if moved is None:
        moved = ir.Function(e.b.module, ir.FunctionType(pointer, [pointer, pointer, I64]), "memmove")
    e.b.call(moved, [e.b.inttoptr(target, pointer), e.b.inttoptr(source, pointer), count])


def _prefetch(address: int, size: int) -> None:
    """Nothing to see: memory is the same afterwards."""


@primitive("vii", _prefetch)
def prefetch(e: Emitter, address: Value, size: Value) -> None:
    """Ask for ``size`` bytes to be brought into the cache behind the nearest."""
    with e.loop(e.const(0), size, CACHE_LINE) as offset:
        e.prefetch(e.b.add(address, offset), CACHE_LINE, near=2)


# ---------------------------------------------------------------- rows


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
