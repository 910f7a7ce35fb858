"""Products of bytes, summed in 32 bits, as the CPU at hand does them best."""

from __future__ import annotations

from llvmlite import ir

from octavo.kernels.cpu.emitter import I8, I32, Emitter, Value
from octavo.kernels.cpu.jit import host_features

WIDE_DOTS = "avx512vnni" in host_features()
NARROW_DOTS = "avxvnni" in host_features()


def dot4(e: Emitter, sums: Value, unsigned: Value, signed: Value) -> Value:
    """``sums[i] += unsigned[4 i + k] * signed[4 i + k]`` over k from 0 to 3, exactly, for vectors of 16 sums.

    The bytes of both factors lie in the 32-bit items of a vector; those of the first are 0 to 255, those of the second
    -128 to 127. That is one instruction of AVX-512 or AVX VNNI; elsewhere bytes are widened and multiplied by pairs.
    """
    b, v = e.b, e.vector
    if WIDE_DOTS:
        return e.intrinsic("llvm.x86.avx512.vpdpbusd.512", v.int32, sums, unsigned, signed)
    if NARROW_DOTS:
        half = ir.VectorType(I32, 8)
        parts = []
        for first in (0, 8):
            mask = ir.Constant(half, list(range(first, first + 8)))
            taken = [b.shuffle_vector(value, value, mask) for value in (sums, unsigned, signed)]
            parts.append(e.intrinsic("llvm.x86.avx512.vpdpbusd.256", half, *taken))
        return b.shuffle_vector(parts[0], parts[1], ir.Constant(v.int32, list(range(16))))
    for byte in range(4):
        left = b.and_(b.lshr(unsigned, v.integer(8 * byte)), v.integer(255))
        right = b.ashr(b.shl(signed, v.integer(24 - 8 * byte)), v.integer(24))
        sums = b.add(sums, b.mul(left, right))
    return sums


def bytes_of(e: Emitter, value: int) -> Value:
    """The same byte throughout a vector of 16 32-bit items."""
    return e.vector.integer(int.from_bytes(bytes([value & 255]) * 4, "little", signed=True))


def add_bytes(e: Emitter, a: Value, b: Value) -> Value:
    """Sums of bytes, each wrapping by itself, of vectors of 16 32-bit items."""
    wide = ir.VectorType(I8, 64)
    return e.b.bitcast(e.b.add(e.b.bitcast(a, wide), e.b.bitcast(b, wide)), e.vector.int32)
