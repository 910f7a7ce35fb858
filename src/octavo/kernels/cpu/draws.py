"""The inner loops of sampling, as primitives (see ``primitives.py``)."""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from octavo.kernels import noise
from octavo.kernels.cpu.emitter import F32, I32, I64, WIDTH, Emitter, Lanes, Value
from octavo.kernels.cpu.primitives import PRIMITIVES, floats, primitive

GROUP = 4 * WIDTH
"""Tokens that are drawn at once: a vector of counters, each good for four."""

NOISE_MAX = 22.9
"""No noise is larger."""
NOISE_MIN = -2.83
"""No noise is smaller."""

_DOUBLE = ir.DoubleType()


# ---------------------------------------------------------------- rows of logits


def _largest(x: int, count: int) -> np.float32:
    return np.float32(np.fmax.reduce(floats(x, count), initial=-np.inf))


@primitive("fii", _largest)
def largest(e: Emitter, x: Value, count: Value) -> Value:
    """The largest of a row of f32; NaN is passed over."""
    lows = [lanes.const(float("-inf")) for lanes in (e.vector, e.scalar)]
    tops = [e.variable(low) for low in lows]
    for lanes, i in e.elementwise(count):
        top = tops[lanes is e.scalar]
        top.set(lanes.maximum(lanes.load(F32, x, i), top.get()))
    across = e.halves(tops[0].get(), lambda a, b: e.b.select(e.b.fcmp_ordered(">", a, b), a, b))
    return e.scalar.maximum(across, tops[1].get())


def _largest_if_finite(x: int, count: int) -> np.float32:
    row = floats(x, count)
    return np.float32(np.fmax.reduce(row, initial=-np.inf) if np.isfinite(row).all() else np.nan)


@primitive("fii", _largest_if_finite)
def largest_if_finite(e: Emitter, x: Value, count: Value) -> Value:
    """The largest of a row of f32; NaN if one of them is NaN or infinite."""
    b = e.b
    # nothing times zero is zero but what is finite
    kinds = (e.vector, e.scalar)
    tops = [e.variable(lanes.const(float("-inf"))) for lanes in kinds]
    checks = [e.variable(lanes.const(0.0)) for lanes in kinds]
    for lanes, i in e.elementwise(count):
        value, which = lanes.load(F32, x, i), int(lanes is e.scalar)
        tops[which].set(lanes.maximum(value, tops[which].get()))
        checks[which].set(lanes.fma(value, lanes.const(0.0), checks[which].get()))
    across = e.halves(tops[0].get(), lambda a, c: b.select(b.fcmp_ordered(">", a, c), a, c))
    top = e.scalar.maximum(across, tops[1].get())
    return b.fadd(top, b.fadd(e.total(checks[0].get()), checks[1].get()))


def _first_equal(x: int, count: int, value: float) -> int:
    places = np.flatnonzero(floats(x, count) == np.float32(value))
    return int(places[0]) if len(places) else count


@primitive("iiif", _first_equal)
def first_equal(e: Emitter, x: Value, count: Value, value: Value) -> Value:
    """The place of the first item of a row of f32 that equals ``value``; ``count`` if none does."""
    b, v = e.b, e.vector
    whole = b.and_(count, e.const(-WIDTH))
    wanted = v.splat(value)
    place = e.variable(e.const(0))
    # vectors up to the one that holds it, then items
    head, test, step, rest, one, next_, end = (b.append_basic_block() for _ in range(7))
    b.branch(head)
    b.position_at_end(head)
    b.cbranch(b.icmp_signed("<", place.get(), whole), test, rest)
    b.position_at_end(test)
    b.cbranch(e.any(b.fcmp_ordered("==", v.load(F32, x, place.get()), wanted)), rest, step)
    b.position_at_end(step)
    place.set(b.add(place.get(), e.const(WIDTH)))
    b.branch(head)
    b.position_at_end(rest)
    b.cbranch(b.icmp_signed("<", place.get(), count), one, end)
    b.position_at_end(one)
    b.cbranch(b.fcmp_ordered("==", e.scalar.load(F32, x, place.get()), value), end, next_)
    b.position_at_end(next_)
    place.set(b.add(place.get(), e.const(1)))
    b.branch(rest)
    b.position_at_end(end)
    return place.get()


def _shift_divide(x: int, shift: float, divisor: float, target: int, count: int) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        floats(target, count)[:] = (floats(x, count) - np.float32(shift)) / np.float32(divisor)


@primitive("viffii", _shift_divide)
def shift_divide(e: Emitter, x: Value, shift: Value, divisor: Value, target: Value, count: Value) -> None:
    """``target = (x - shift) / divisor``, rows of f32."""
    for lanes, i in e.elementwise(count):
        shifted = e.b.fsub(lanes.load(F32, x, i), lanes.splat(shift))
        lanes.store(F32, target, i, e.b.fdiv(shifted, lanes.splat(divisor)))


def _weigh(x: int, shift: float, target: int, count: int) -> float:
    with np.errstate(invalid="ignore"):
        weights = np.exp(floats(x, count) - np.float32(shift))
    if target:
        floats(target, count)[:] = weights
    return float(weights.sum(dtype=np.float64))


@primitive("difii", _weigh)
def weigh(e: Emitter, x: Value, shift: Value, target: Value, count: Value) -> Value:
    """The sum, in double, of ``exp(x - shift)``, each term in float; stores the terms where ``target`` is not 0."""
    b = e.b
    doubles = [lanes.of(_DOUBLE) for lanes in (e.vector, e.scalar)]
    sums = [e.variable(ir.Constant(doubles[0], [0.0] * WIDTH)), e.variable(ir.Constant(doubles[1], 0.0))]
    keeps = b.icmp_signed("!=", target, e.const(0))
    for lanes, i in e.elementwise(count):
        which = int(lanes is e.scalar)
        weight = lanes.exp(b.fsub(lanes.load(F32, x, i), lanes.splat(shift)))
        with e.when(keeps):
            lanes.store(F32, target, i, weight)
        sums[which].set(b.fadd(sums[which].get(), b.fpext(weight, doubles[which])))
    return b.fadd(e.total(sums[0].get()), sums[1].get())


def _group_largest(x: int, count: int, target: int) -> None:
    groups = -(-count // GROUP)
    padded = np.full(groups * GROUP, -np.inf, np.float32)
    padded[:count] = floats(x, count)
    floats(target, groups)[:] = np.fmax.reduce(padded.reshape(groups, GROUP), axis=1)


@primitive("viii", _group_largest)
def group_largest(e: Emitter, x: Value, count: Value, target: Value) -> None:
    """The largest of each ``GROUP`` items of a row of f32, the last group perhaps a short one."""
    b = e.b
    with e.loop(e.const(0), count, GROUP) as start:
        rest = b.sub(count, start)
        size = b.select(b.icmp_signed("<", rest, e.const(GROUP)), rest, e.const(GROUP))
        top = b.call(largest_function(b.module), [e.at(x, start, 4), size])
        e.scalar.store(F32, target, b.udiv(start, e.const(GROUP)), top)


def largest_function(module: ir.Module) -> ir.Function:
    """:func:`largest` as a function of ``module``."""
    return PRIMITIVES["_largest"].define(module)


def _pick(x: int, count: int, least: float, target: int) -> int:
    row = floats(x, count)
    picked = row[row >= np.float32(least)]
    floats(target, len(picked))[:] = picked
    return len(picked)


@primitive("iiifi", _pick)
def pick(e: Emitter, x: Value, count: Value, least: Value, target: Value) -> Value:
    """Copy those of a row of f32 that are at least ``least``, in order; returns how many."""
    b, v = e.b, e.vector
    taken = e.variable(e.const(0))
    whole = b.and_(count, e.const(-WIDTH))

    def single(i: Value) -> None:
        value = e.scalar.load(F32, x, i)
        e.scalar.store(F32, target, taken.get(), value)
        counts = b.zext(b.fcmp_ordered(">=", value, least), I64)
        taken.set(b.add(taken.get(), counts))

    with e.loop(e.const(0), whole, WIDTH) as start:
        some = e.any(b.fcmp_ordered(">=", v.load(F32, x, start), v.splat(least)))
        with e.when(some), e.loop(start, b.add(start, e.const(WIDTH)), 1) as i:
            single(i)
    with e.loop(whole, count, 1) as i:
        single(i)
    return taken.get()


# ---------------------------------------------------------------- noise


def _words(key: int, position: int, quad: int, target: int) -> None:
    mask = (1 << 32) - 1
    pair = (key & mask, (key >> 32) & mask)
    rows = [
        noise.philox((quad + i, position & mask, (position >> 32) & mask, noise.SAMPLER_DOMAIN), pair)
        for i in range(WIDTH)
    ]
    floats(target, GROUP).view(np.uint32)[:] = np.array(rows, np.uint32).ravel()


def philox(e: Emitter, key: Value, position: Value, quads: Value) -> list[Value]:
    """Philox-4x32-10 on 16 counters: ``quads`` are their first words, as 64-bit lanes; gives four vectors of 64-bit
    lanes whose low halves are the output words."""
    b, v = e.b, e.vector
    low = v.integer(0xFFFFFFFF, wide=True)
    half = v.integer(32, wide=True)
    weyl = [ir.Constant(I64, value) for value in (noise.WEYL_0, noise.WEYL_1)]
    mask = ir.Constant(I64, 0xFFFFFFFF)
    keys = [b.and_(key, mask), b.lshr(key, e.const(32))]
    factors = [v.integer(value, wide=True) for value in (noise.MULTIPLIER_0, noise.MULTIPLIER_1)]
    c = [
        quads,
        v.splat(b.and_(position, mask)),
        v.splat(b.lshr(position, e.const(32))),
        v.integer(noise.SAMPLER_DOMAIN, wide=True),
    ]
    for _ in range(noise.ROUNDS):
        p0 = b.mul(b.and_(c[0], low), factors[0])
        p1 = b.mul(b.and_(c[2], low), factors[1])
        k0, k1 = (v.splat(word) for word in keys)
        c = [b.xor(b.xor(b.lshr(p1, half), c[1]), k0), p1, b.xor(b.xor(b.lshr(p0, half), c[3]), k1), p0]
        keys = [b.and_(b.add(word, step), mask) for word, step in zip(keys, weyl, strict=True)]
    return c


def _uniform(v: Lanes, words: Value) -> Value:
    b = v.b
    value = b.uitofp(b.trunc(words, v.int32), v.float)
    scaled = b.fadd(b.fmul(value, v.const(2.0**-32)), v.const(2.0**-33))
    return v.minimum(scaled, v.const(noise.UNIFORM_MAX))


def _gumbel(v: Lanes, uniform: Value) -> Value:
    """``-log(-log1p(-v))``; log1p by the correction of Kahan: what 1 - v lost in rounding comes back as a factor."""
    b = v.b
    rest = b.fsub(v.const(1.0), uniform)
    lost = b.fdiv(b.fmul(v.negate(v.log(rest)), uniform), b.fsub(v.const(1.0), rest))
    exponential = b.select(b.fcmp_ordered("==", rest, v.const(1.0)), uniform, lost)
    return v.negate(v.log(exponential))


@primitive("viiii", _words)
def words(e: Emitter, key: Value, position: Value, quad: Value, target: Value) -> None:
    """The words of 64 tokens from ``4 * quad`` on, as noise.py specifies them (for tests)."""
    b, v = e.b, e.vector
    lanes = philox(e, key, position, b.add(v.splat(quad), _lane_numbers(1)))
    with_order = [b.trunc(c, v.int32) for c in lanes]
    for i, vector in enumerate(_interleave(b, with_order)):
        b.store(vector, v.pointer(b.add(target, e.const(4 * WIDTH * i)), I32), align=4)


def _lane_numbers(step: int) -> ir.Constant:
    return ir.Constant(ir.VectorType(I64, WIDTH), [step * i for i in range(WIDTH)])


def _shuffle(b: ir.IRBuilder, x: Value, y: Value, places: list[int]) -> Value:
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(places)), places))


def _interleave(b: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """Four vectors, item k of lane l becoming item 4 l + k of the 64."""
    pairs = [
        _shuffle(b, vectors[i], vectors[i + 1], [x for lane in range(WIDTH) for x in (lane, WIDTH + lane)])
        for i in (0, 2)
    ]
    wide = 2 * WIDTH
    quads = [x for lane in range(WIDTH) for x in (2 * lane, 2 * lane + 1, wide + 2 * lane, wide + 2 * lane + 1)]
    return [_shuffle(b, pairs[0], pairs[1], quads[WIDTH * i : WIDTH * (i + 1)]) for i in range(4)]


def _deinterleave(b: ir.IRBuilder, vectors: list[Value]) -> list[Value]:
    """The reverse: of 64 items in four vectors, vector k of the result holds items k, 4 + k, 8 + k, ..."""
    wide = 2 * WIDTH
    halves = [_shuffle(b, vectors[i], vectors[i + 1], list(range(wide))) for i in (0, 2)]
    return [_shuffle(b, halves[0], halves[1], list(range(k, 4 * WIDTH, 4))) for k in range(4)]


def _perturbed_best(
    logits: int,
    groups: int,
    first: int,
    top: float,
    temperature: float,
    floor: float,
    floor_token: int,
    key: int,
    position: int,
    best: int,
) -> None:
    value, token = floats(best, 1), floats(best + 8, 2).view(np.int64)
    words_ = np.empty(GROUP, np.uint32)
    for group in range(groups):
        start = first + group * GROUP
        x = floats(logits + 4 * group * GROUP, GROUP)
        with np.errstate(invalid="ignore", over="ignore"):
            x = (x - np.float32(top)) / np.float32(temperature)
        tokens = start + np.arange(GROUP)
        allowed = (x > np.float32(floor)) | ((x == np.float32(floor)) & (tokens <= floor_token))
        if not allowed.any():
            continue
        PRIMITIVES["_words"].python(key, position, start // 4, words_.ctypes.data)
        v = np.minimum(
            words_.astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33), np.float32(noise.UNIFORM_MAX)
        )
        perturbed = np.where(allowed, x - np.log(-np.log1p(-v)), -np.inf)
        i = int(np.argmax(perturbed))
        if perturbed[i] > value[0]:
            value[0], token[0] = perturbed[i], start + i


@primitive("viiifffiiii", _perturbed_best)
def perturbed_best(
    e: Emitter,
    logits: Value,
    groups: Value,
    first: Value,
    top: Value,
    temperature: Value,
    floor: Value,
    floor_token: Value,
    key: Value,
    position: Value,
    best: Value,
) -> None:
    """The arg-max of ``x + noise`` with ``x = (logit - top) / temperature`` over ``groups`` groups of 64 tokens from
    token ``first`` on, of those tokens whose x is above ``floor``, or equal to it with an id up to ``floor_token``.

    ``best`` holds a float and, 8 bytes on, a 64-bit token id: what was found before, replaced where it is surpassed.
    Groups that cannot surpass it, whatever their noise, are passed over; logarithms are taken only where the noise's
    exponent leaves a chance.
    """
    b, v, s = e.b, e.vector, e.scalar
    infinity = float("-inf")
    pointer = b.inttoptr(b.add(best, e.const(8)), I64.as_pointer())
    best_value = e.variable(s.load(F32, best, e.const(0)))
    best_token = e.variable(b.load(pointer, align=8))

    def least_logit(reached: Value) -> Value:
        """No logit below this can surpass ``reached``, or is above the floor; with room for rounding."""
        surpassed = s.maximum(reached, s.const(NOISE_MIN))
        needed = s.maximum(b.fsub(surpassed, s.const(NOISE_MAX)), floor)
        edge = s.fma(needed, temperature, top)
        room = s.fma(s.e.intrinsic("llvm.fabs.f32", s.float, edge), s.const(1e-5), s.const(1e-5))
        room = s.fma(s.e.intrinsic("llvm.fabs.f32", s.float, top), s.const(1e-5), room)
        return b.fsub(edge, room)

    threshold = e.variable(least_logit(best_value.get()))
    tops, temperatures, floors = v.splat(top), v.splat(temperature), v.splat(floor)
    floor_tokens = v.splat(floor_token)
    with e.loop(e.const(0), groups, 1) as group:
        start = b.mul(group, e.const(GROUP))
        raw = [v.load(F32, logits, b.add(start, e.const(WIDTH * i))) for i in range(4)]
        highest = v.maximum(v.maximum(raw[0], raw[1]), v.maximum(raw[2], raw[3]))
        with e.when(e.any(b.fcmp_ordered(">=", highest, v.splat(threshold.get())))):
            base = b.add(first, start)
            quads = b.add(v.splat(b.lshr(base, e.const(2))), _lane_numbers(1))
            drawn = philox(e, key, position, quads)
            uniforms = [_uniform(v, c) for c in drawn]
            chance = None
            allowed = []
            scaled = [b.fdiv(b.fsub(x, tops), temperatures) for x in _deinterleave(b, raw)]
            reached = v.splat(best_value.get())
            for k, (x, uniform) in enumerate(zip(scaled, uniforms, strict=True)):
                token = b.add(v.splat(b.add(base, e.const(k))), _lane_numbers(4))
                tied = b.and_(b.fcmp_ordered("==", x, floors), b.icmp_signed("<=", token, floor_tokens))
                may = b.or_(b.fcmp_ordered(">", x, floors), tied)
                allowed.append(may)
                # noise = -log(-log(1 - v)) <= -log(v) <= (127 - exponent field of v) * log 2
                exponent = b.lshr(b.bitcast(uniform, v.int32), v.integer(23))
                bound = b.sitofp(b.sub(v.integer(127), exponent), v.float)
                hope = b.fcmp_ordered(">", v.fma(bound, v.const(0.69315), b.fadd(x, v.const(1e-3))), reached)
                hope = b.and_(hope, may)
                chance = hope if chance is None else b.or_(chance, hope)
            with e.when(e.any(chance)):
                lane_best, lane_token = v.const(infinity), v.splat(e.const(0))
                for k, (x, uniform, may) in enumerate(zip(scaled, uniforms, allowed, strict=True)):
                    token = b.add(v.splat(b.add(base, e.const(k))), _lane_numbers(4))
                    value = b.select(may, b.fadd(x, _gumbel(v, uniform)), v.const(infinity))
                    better = b.fcmp_ordered(">", value, lane_best)
                    lane_best = b.select(better, value, lane_best)
                    lane_token = b.select(better, token, lane_token)
                winner = e.halves(lane_best, lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y))
                with e.when(b.fcmp_ordered(">", winner, best_value.get())):
                    ties = b.fcmp_ordered("==", lane_best, v.splat(winner))
                    far = v.splat(e.const(1 << 62))
                    tokens = b.select(ties, lane_token, far)
                    best_token.set(e.halves(tokens, lambda x, y: b.select(b.icmp_signed("<", x, y), x, y)))
                    best_value.set(winner)
                    threshold.set(least_logit(winner))
    s.store(F32, best, e.const(0), best_value.get())
    b.store(best_token.get(), pointer, align=8)
