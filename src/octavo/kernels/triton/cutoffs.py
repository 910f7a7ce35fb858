"""Where top-k and top-p cut a row off, without sorting it.

What they leave is always a run of the tokens in descending order of (logit, then ascending id): so it is given by its
last member, an :func:`~octavo.kernels.triton.order.order_key` of the scaled logit and the last token id among those
equal to it. The key is found by bisection: how many tokens, or how much probability, lies at or above a pivot?

One program goes over a row three times: for its largest logit; for the mass of its distribution and the number of
tokens above each of a ladder of pivots; and to copy out the tokens above a pivot that surely leaves enough. The
bisection then looks at these alone (a few thousand, in the nearest cache). For top-p the sure pivot is (1 - p) Z / V:
all V tokens less likely than that together weigh less than (1 - p) Z. If there are more than :data:`CAPACITY`, the
bisection goes over the whole row each time.

Sums are float32: a nucleus ends where its mass reaches p to within 1e-6 of the whole. Rows that are not truncated cost
one program that returns at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.order import order_key, order_value

BLOCK = 2048
"""Logits that a program holds at once."""

CAPACITY = 4 * BLOCK
"""Tokens that are copied out of a row."""

NUM_WARPS = 8

LADDER = tl.constexpr(8)
"""Pivots of the ladder: 1/2, 1, 2 ... below the largest."""

LAST = tl.constexpr(2**31 - 1)
"""No token id is above."""

LEAST_KEY = tl.constexpr(-(2**31))


@triton.jit
def scaled_logits(x, top, temperature):
    """(x - top) / temperature, rounded as the reference rounds it."""
    return tl.div_rn(x - top, tl.zeros_like(x) + temperature)


@triton.jit
def load_block(values, value_ids, count, is_copied, start, top, temperature, BLOCK: tl.constexpr):
    """A block of the tokens that are looked at: their scaled logits' keys, ids, and weights; 0 beyond the end."""
    places = start + tl.arange(0, BLOCK)
    inside = places < count
    scaled = scaled_logits(tl.load(values + places, mask=inside, other=-float("inf")).to(tl.float32), top, temperature)
    ids = places
    if is_copied:
        ids = tl.load(value_ids + places, mask=inside, other=0)
    return order_key(scaled), ids, tl.where(inside, tl.exp(scaled), 0.0), inside


@triton.jit
def reached_by(
    values, value_ids, count, is_copied, top, temperature, pivot, floor, floor_id,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many tokens, of those that the floor leaves, have a key of ``pivot`` at least; and how much they weigh."""
    number = tl.zeros((BLOCK,), tl.int32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        keys, ids, weights, inside = load_block(values, value_ids, count, is_copied, start, top, temperature, BLOCK)
        above = inside & (keys >= pivot) & ((keys > floor) | ((keys == floor) & (ids <= floor_id)))
        number += above.to(tl.int32)
        mass += tl.where(above, weights, 0.0)
    total = tl.sum(number, 0)
    return total, tl.sum(mass, 0) if WEIGHTED else total.to(tl.float32)


@triton.jit
def cut(
    values, value_ids, count, is_copied, top, temperature, lowest, highest, floor, floor_id, target,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shortest run, of what the floor leaves, that reaches ``target`` tokens or weight: its last key and id.

    ``lowest`` is a key from which on it is reached, ``highest`` the largest key there is."""
    low = lowest.to(tl.int64)
    high = low * 0 + highest + 1
    number_low, reached = reached_by(
        values, value_ids, count, is_copied, top, temperature, lowest, floor, floor_id, WEIGHTED, BLOCK
    )
    number_high = 0
    while (high - low > 1) & (number_low - number_high > 1):
        middle = (low + high) >> 1
        number, reached = reached_by(
            values, value_ids, count, is_copied, top, temperature, middle.to(tl.int32), floor, floor_id, WEIGHTED, BLOCK
        )
        if reached >= target:
            low = middle
            number_low = number
        else:
            high = middle
            number_high = number
    key = low.to(tl.int32)
    last_id = LAST
    if number_low - number_high > 1:  # they are equal, and some of them may suffice
        _above, before = reached_by(
            values, value_ids, count, is_copied, top, temperature, key + 1, floor, floor_id, WEIGHTED, BLOCK
        )
        each = tl.exp(order_value(key)) if WEIGHTED else 1.0
        needed = tl.maximum(tl.ceil((target - before) / each), 1.0)
        seen = 0.0
        for start in range(0, count, BLOCK):
            keys, ids, _weights, inside = load_block(
                values, value_ids, count, is_copied, start, top, temperature, BLOCK
            )
            equal = inside & (keys == key) & ((keys > floor) | (ids <= floor_id))
            ranks = seen + tl.cumsum(equal.to(tl.float32), 0)
            last_id = tl.minimum(last_id, tl.min(tl.where(equal & (ranks >= needed), ids, LAST), 0))
            seen += tl.sum(equal.to(tl.float32), 0)
    return key, last_id


@triton.jit
def copy_above(row, copies, copy_ids, vocab_size, top, temperature, key, CAPACITY: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the tokens with at least this key, in ascending order, as far as there is room; how many there are."""
    number = 0
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < vocab_size
        x = tl.load(row + ids, mask=inside, other=-float("inf"))
        above = inside & (order_key(scaled_logits(x.to(tl.float32), top, temperature)) >= key)
        places = number + tl.cumsum(above.to(tl.int32), 0) - 1
        tl.store(copies + places, x, mask=above & (places < CAPACITY))
        tl.store(copy_ids + places, ids, mask=above & (places < CAPACITY))
        number += tl.sum(above.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read them
    return number


@triton.jit
def survey(row, vocab_size, top, temperature, wanted, LADDER: tl.constexpr, BLOCK: tl.constexpr):
    """The mass of a row's distribution (of its likeliest token: 1), and the highest rung of the ladder, a scaled logit,
    that ``wanted`` tokens are not below; minus infinity where there is none."""
    mass = tl.zeros((BLOCK,), tl.float32)
    numbers = tl.zeros((LADDER,), tl.int32)
    rungs = -0.5 * tl.exp2(tl.arange(0, LADDER).to(tl.float32))
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32)
        scaled = scaled_logits(x, top, temperature)
        mass += tl.exp(scaled)
        numbers += tl.sum((scaled[:, None] >= rungs[None, :]).to(tl.int32), 0)
    return tl.sum(mass, 0), tl.max(tl.where(numbers >= wanted, rungs, -float("inf")), 0)


@triton.jit
def largest(row, vocab_size, BLOCK: tl.constexpr):
    """A row's largest logit."""
    found = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(row + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32))
    return tl.max(found, 0)


@triton.jit
def cutoff_kernel(
    logits, row_stride, sources, slots, temperatures, top_ks, top_ps, min_ps,
    copies, copy_ids, tops, cut_keys, cut_ids, vocab_size,
    LADDER: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One draw's largest logit, and the last key and id that top-k and top-p leave; grid (draws,). Of a row that is not
    truncated, nothing is written. ``copies``, of the logits' dtype, and ``copy_ids``, int32, are [draws, CAPACITY]."""
    draw = tl.program_id(0)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    if slot < 0:
        return
    temperature = tl.load(temperatures + slot)
    top_k = tl.load(top_ks + slot)
    top_p = tl.load(top_ps + slot)
    if (temperature == 0) | ((top_k <= 0) & (top_p >= 1) & (tl.load(min_ps + slot) <= 0)):
        return
    source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
    row = logits + source * row_stride
    copies += draw.to(tl.int64) * CAPACITY
    copy_ids += draw.to(tl.int64) * CAPACITY
    top = largest(row, vocab_size, BLOCK)
    key = LEAST_KEY
    last_id = LAST
    cuts_k = (top_k > 0) & (top_k < vocab_size)
    if cuts_k | (top_p < 1):
        wanted = tl.where(cuts_k, top_k, 1)
        mass, rung = survey(row, vocab_size, top, temperature, wanted, LADDER, BLOCK)
        if not cuts_k:
            rung = tl.log((1 - top_p) * mass / vocab_size) - 0.01
        values = row
        count = vocab_size
        lowest = order_key(rung)
        number = copy_above(row, copies, copy_ids, vocab_size, top, temperature, lowest, CAPACITY, BLOCK)
        is_copied = number <= CAPACITY
        if is_copied:
            values = copies
            count = number
        if cuts_k:
            key, last_id = cut(
                values, copy_ids, count, is_copied, top, temperature, lowest, 0, key, last_id,
                top_k.to(tl.float32), False, BLOCK,
            )  # fmt: skip
            lowest = key
        if top_p < 1:
            if cuts_k:
                number, mass = reached_by(
                    values, copy_ids, count, is_copied, top, temperature, key, key, last_id, True, BLOCK
                )
            key, last_id = cut(
                values, copy_ids, count, is_copied, top, temperature, lowest, 0, key, last_id,
                top_p * mass, True, BLOCK,
            )  # fmt: skip
    tl.store(tops + draw, top)
    tl.store(cut_keys + draw, key)
    tl.store(cut_ids + draw, last_id)
