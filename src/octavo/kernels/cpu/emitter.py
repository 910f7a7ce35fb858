"""Writing LLVM code in vectors of 16 floats.

The inner loops of this backend are written as vector code, so that what the CPU executes does not hang on what an
auto-vectoriser makes of a loop. LLVM turns a vector of 16 into one AVX-512 register, two of AVX2 or four of NEON.
Floating-point operations are emitted without fast-math flags: their order is the one written here, in every caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from octavo.kernels.cpu.jit import host_features

WIDTH = 16
"""Floats of a vector."""

CACHE_LINE = 64
"""Bytes."""

F32, BF16, F16, INT8 = range(4)
"""Codes of the dtypes that memory may hold."""

DTYPES = (F32, BF16, F16)
"""Of activations and weights."""
KV_DTYPES = (*DTYPES, INT8)
"""Of keys and values."""
ITEM_SIZE = (4, 2, 2, 1)

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT = ir.FloatType()
HALF = ir.HalfType()


class _BrainFloat(ir.Type):
    """LLVM's own bfloat16, for which llvmlite has no name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BrainFloat)

    def __hash__(self) -> int:
        return hash(_BrainFloat)


_NATIVE_BF16 = "avx512bf16" in host_features()
"""Whether the CPU rounds a vector to bfloat16 by itself."""

LN2 = 0.6931471805599453
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
LOG2_E = 1.4426950408889634
EXP_LOWEST = -87.33654
"""Below this exp is taken for 0 (its result would not be a normal float)."""
EXP_HIGHEST = 88.0
"""Above this exp stays at its value here."""

# Moshier's Cephes library, single precision: the minimax polynomials of expf and logf
EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)

Value = Any
"""An LLVM value; llvmlite has no types of its own to give."""


class Emitter:
    """Control flow and scalars, on top of an ``ir.IRBuilder``."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder
        self.vector = Lanes(self, WIDTH)
        self.scalar = Lanes(self, 1)

    def const(self, value: int) -> Value:
        """A 64-bit constant."""
        return ir.Constant(I64, value)

    def intrinsic(self, name: str, result: ir.Type, *arguments: Value) -> Value:
        """Call an LLVM intrinsic by its full name."""
        module = self.b.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.b.call(function, arguments)

    @contextmanager
    def loop(self, start: Value, stop: Value, step: int) -> Iterator[Value]:
        """``for i in range(start, stop, step)`` on 64-bit values; gives i."""
        b = self.b
        before = b.block
        head, body, end = (b.append_basic_block(name) for name in ("loop.head", "loop.body", "loop.end"))
        b.branch(head)
        b.position_at_end(head)
        i = b.phi(I64)
        i.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", i, stop), body, end)
        b.position_at_end(body)
        yield i
        i.add_incoming(b.add(i, self.const(step)), b.block)
        b.branch(head)
        b.position_at_end(end)

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """``if condition:``."""
        with self.b.if_then(condition):
            yield

    def per_dtype(self, code: Value, dtypes: tuple[int, ...] = DTYPES) -> Iterator[int]:
        """Emits its body once for each of ``dtypes``, to be run for the one whose code is ``code``."""
        for dtype in dtypes:
            with self.when(self.b.icmp_signed("==", code, self.const(dtype))):
                yield dtype

    def elementwise(self, count: Value) -> Iterator[tuple[Lanes, Value]]:
        """Emits its body twice, for whole vectors and for the rest one by one: gives the lanes and the index."""
        whole = self.b.and_(count, self.const(-WIDTH))
        for lanes, start, stop in ((self.vector, self.const(0), whole), (self.scalar, whole, count)):
            with self.loop(start, stop, lanes.n) as i:
                yield lanes, i

    def variable(self, initial: Value) -> Variable:
        """A local variable."""
        with self.b.goto_entry_block():
            slot = self.b.alloca(initial.type)
        made = Variable(self, slot)
        made.set(initial)
        return made

    def at(self, base: Value, index: Value, size: int) -> Value:
        """The address of item ``index`` of items of ``size`` bytes at ``base``."""
        return self.b.add(base, self.b.mul(index, self.const(size)))

    def prefetch(self, address: Value, size: int, near: int = 3, write: bool = False) -> None:
        """Ask for ``size`` bytes to be brought near, to be read or written: 3 is the nearest cache, 2 the one behind
        it."""
        pointer = I8.as_pointer()
        purpose, level, data = (ir.Constant(I32, value) for value in (int(write), near, 1))
        for offset in range(0, size, CACHE_LINE):
            place = self.b.inttoptr(self.b.add(address, self.const(offset)), pointer)
            self.intrinsic("llvm.prefetch.p0", ir.VoidType(), place, purpose, level, data)

    def total(self, vector: Value) -> Value:
        """The sum of a vector's 16 floats, always in the same order: halves are added to each other."""
        return self.halves(vector, self.b.fadd)

    def halves(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine the halves of a vector, then the halves of that, down to one value."""
        n = vector.type.count
        while n > 1:
            n //= 2
            low, high = (
                self.b.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(I32, n), list(range(k, k + n))))
                for k in (0, n)
            )
            vector = combine(low, high)
        return self.b.extract_element(vector, ir.Constant(I32, 0))

    def any(self, mask: Value) -> Value:
        """Whether any of a vector's 16 booleans is set."""
        return self.b.icmp_unsigned("!=", self.b.bitcast(mask, I16), ir.Constant(I16, 0))


class Variable:
    """A local variable; LLVM keeps it in a register."""

    def __init__(self, emitter: Emitter, slot: Value) -> None:
        self.emitter = emitter
        self.slot = slot

    def get(self) -> Value:
        """Its value."""
        return self.emitter.b.load(self.slot)

    def set(self, value: Value) -> None:
        """Give it a value."""
        self.emitter.b.store(value, self.slot)


class Lanes:
    """Arithmetic on ``n`` floats at once: vectors of 16, or a single float, by the same code."""

    def __init__(self, emitter: Emitter, n: int) -> None:
        self.e = emitter
        self.b = emitter.b
        self.n = n
        self.float = self.of(FLOAT)
        self.int32 = self.of(I32)
        self.int64 = self.of(I64)
        self.suffix = f"v{n}f32" if n > 1 else "f32"

    def of(self, element: ir.Type) -> ir.Type:
        """The type of ``n`` elements."""
        return ir.VectorType(element, self.n) if self.n > 1 else element

    def const(self, value: float) -> Value:
        """The same float in every lane."""
        return ir.Constant(self.float, [value] * self.n if self.n > 1 else value)

    def integer(self, value: int, wide: bool = False) -> Value:
        """The same 32-bit (or 64-bit) integer in every lane."""
        return ir.Constant(self.int64 if wide else self.int32, [value] * self.n if self.n > 1 else value)

    def splat(self, scalar: Value) -> Value:
        """A scalar in every lane."""
        if self.n == 1:
            return scalar
        vector = ir.VectorType(scalar.type, self.n)
        first = self.b.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.b.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, self.n), [0] * self.n))

    def pointer(self, address: Value, element: ir.Type) -> Value:
        """A pointer to ``n`` elements."""
        return self.b.inttoptr(address, self.of(element).as_pointer())

    def load(self, dtype: int, base: Value, index: Value) -> Value:
        """``n`` floats from item ``index`` on of items of ``dtype`` at ``base``, widened."""
        address = self.e.at(base, index, ITEM_SIZE[dtype])
        if dtype == F32:
            return self.b.load(self.pointer(address, FLOAT), align=4)
        if dtype == F16:
            return self.b.fpext(self.b.load(self.pointer(address, HALF), align=2), self.float)
        if dtype == INT8:
            whole = self.b.sext(self.b.load(self.pointer(address, I8), align=1), self.int32)
            return self.b.sitofp(whole, self.float)
        bits = self.b.zext(self.b.load(self.pointer(address, I16), align=2), self.int32)
        return self.b.bitcast(self.b.shl(bits, self.integer(16)), self.float)

    def store(self, dtype: int, base: Value, index: Value, value: Value) -> None:
        """Store floats as ``dtype``, rounded to nearest even; NaN stays NaN."""
        address = self.e.at(base, index, ITEM_SIZE[dtype])
        if dtype == F32:
            self.b.store(value, self.pointer(address, FLOAT), align=4)
        elif dtype == F16:
            self.b.store(self.b.fptrunc(value, self.of(HALF)), self.pointer(address, HALF), align=2)
        else:
            self.b.store(self.to_bf16(value), self.pointer(address, I16), align=2)

    def to_bf16(self, value: Value) -> Value:
        """The 16 bits of floats rounded to bfloat16. Where the CPU does it in one instruction, numbers that are too
        small to be normal become 0, as they are for its products."""
        b = self.b
        if self.n > 1 and _NATIVE_BF16:
            rounded = self.e.intrinsic("llvm.x86.avx512bf16.cvtneps2bf16.512", self.of(_BrainFloat()), value)
            return b.bitcast(rounded, self.of(I16))
        bits = b.bitcast(value, self.int32)
        high = b.lshr(bits, self.integer(16))
        odd = b.and_(high, self.integer(1))
        rounded = b.lshr(b.add(bits, b.add(odd, self.integer(0x7FFF))), self.integer(16))
        quiet = b.or_(high, self.integer(0x40))
        return b.trunc(b.select(b.fcmp_unordered("uno", value, value), quiet, rounded), self.of(I16))

    def rounded(self, dtype: int, value: Value) -> Value:
        """Floats as they come back when stored as ``dtype``."""
        if dtype == F32:
            return value
        if dtype == F16:
            return self.b.fpext(self.b.fptrunc(value, self.of(HALF)), self.float)
        bits = self.b.zext(self.to_bf16(value), self.int32)
        return self.b.bitcast(self.b.shl(bits, self.integer(16)), self.float)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """``a * b + c``, rounded once."""
        return self.e.intrinsic(f"llvm.fma.{self.suffix}", self.float, a, b, c)

    def maximum(self, a: Value, b: Value) -> Value:
        """The larger; ``b`` where either is NaN."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def minimum(self, a: Value, b: Value) -> Value:
        """The smaller; ``b`` where either is NaN."""
        return self.b.select(self.b.fcmp_ordered("<", a, b), a, b)

    def negate(self, x: Value) -> Value:
        """``-x``."""
        return self.b.fneg(x)

    def horner(self, x: Value, coefficients: tuple[float, ...]) -> Value:
        """A polynomial, highest power first."""
        result = self.const(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.fma(result, x, self.const(coefficient))
        return result

    def exp(self, x: Value) -> Value:
        """e to the x, to about one unit in the last place; 0 below ``EXP_LOWEST``; NaN stays NaN."""
        b = self.b
        low, high = self.const(EXP_LOWEST), self.const(EXP_HIGHEST)
        clamped = b.select(b.fcmp_ordered("<", x, low), low, x)
        clamped = b.select(b.fcmp_ordered(">", clamped, high), high, clamped)
        # adding 1.5 * 2**23 rounds to an integer and leaves it in the low bits
        magic = self.const(12582912.0)
        shifted = self.fma(clamped, self.const(LOG2_E), magic)
        n = b.fsub(shifted, magic)
        r = self.fma(n, self.const(-LN2_HIGH), clamped)
        r = self.fma(n, self.const(-LN2_LOW), r)
        p = self.horner(r, EXP_COEFFICIENTS)
        y = b.fadd(self.fma(p, b.fmul(r, r), r), self.const(1.0))
        power = b.sub(b.bitcast(shifted, self.int32), b.bitcast(magic, self.int32))
        scale = b.bitcast(b.shl(b.add(power, self.integer(127)), self.integer(23)), self.float)
        return b.select(b.fcmp_ordered("<", x, low), self.const(0.0), b.fmul(y, scale))

    def log(self, x: Value) -> Value:
        """The natural logarithm of positive normal floats, to about one unit in the last place."""
        b = self.b
        bits = b.bitcast(x, self.int32)
        exponent = b.sitofp(b.sub(b.lshr(bits, self.integer(23)), self.integer(126)), self.float)
        mantissa = b.or_(b.and_(bits, self.integer(0x7FFFFF)), self.integer(0x3F000000))
        m = b.bitcast(mantissa, self.float)
        small = b.fcmp_ordered("<", m, self.const(0.7071067811865476))
        exponent = b.fsub(exponent, b.select(small, self.const(1.0), self.const(0.0)))
        m = b.fsub(b.select(small, b.fadd(m, m), m), self.const(1.0))
        z = b.fmul(m, m)
        y = b.fmul(b.fmul(self.horner(m, LOG_COEFFICIENTS), m), z)
        y = self.fma(exponent, self.const(LN2_LOW), y)
        y = self.fma(z, self.const(-0.5), y)
        return self.fma(exponent, self.const(LN2_HIGH), b.fadd(m, y))

    def sigmoid_times(self, x: Value, y: Value) -> Value:
        """``y / (1 + exp(-x))``."""
        return self.b.fdiv(y, self.b.fadd(self.const(1.0), self.exp(self.negate(x))))

    def tanh(self, x: Value) -> Value:
        """The hyperbolic tangent, to about 1e-7 absolute."""
        b = self.b
        e = self.exp(b.fadd(x, x))
        return b.fsub(self.const(1.0), b.fdiv(self.const(2.0), b.fadd(e, self.const(1.0))))
