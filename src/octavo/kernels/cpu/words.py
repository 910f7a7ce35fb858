"""Loads and stores by address, and counters that threads share, as primitives (see ``primitives.py``)."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
from llvmlite import ir

from octavo.kernels import noise
from octavo.kernels.cpu.emitter import (
    CACHE_LINE,
    FLOAT,
    I32,
    I64,
    Emitter,
    Value,
)
from octavo.kernels.cpu.primitives import primitive


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
