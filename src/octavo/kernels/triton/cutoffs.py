"""Where top-k and top-p cut a row off, without sorting it.

What they leave is always a run of the tokens in descending order of (logit, then ascending id): so it is given by its
last member, an :func:`~octavo.kernels.triton.order.order_key` of the scaled logit and the last token id among those
equal to it. The key is found by bisection: how many tokens, or how much probability, lies at or above a pivot?

One program goes over a row three times: for its largest logit; for the mass of its distribution and the number of
tokens above each of a ladder of pivots; and to copy out the tokens above a pivot that surely leaves enough. The
bisection then looks at these alone (a few thousand, in the nearest cache). For top-p the sure pivot is (1 - p) Z / V:
all V tokens less likely than that together weigh less than (1 - p) Z. If there are more than :data:`CAPACITY`, the
bisection goes over the whole row each time.

Sums are float32: a nucleus ends where its mass reaches p to within 1e-6 of the whole.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.order import order_key, order_value

BLOCK = 4096
"""Logits that a program holds at once."""

CAPACITY = 2 * BLOCK
"""Tokens that are copied out of a row."""

NUM_WARPS = 16

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
    rungs = tl.arange(0, LADDER)
    numbers = tl.zeros((LADDER,), tl.int32)
    for first in range(0, vocab_size, BLOCK * 128):
        # Each lane counts the tokens between two rungs in a byte: 128 at the most before they are added up.
        packed = tl.zeros((BLOCK,), tl.int64)
        for start in range(first, tl.minimum(first + BLOCK * 128, vocab_size), BLOCK):
            ids = start + tl.arange(0, BLOCK)
            x = tl.load(row + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32)
            scaled = scaled_logits(x, top, temperature)
            mass += tl.exp(scaled)
            # The exponent of the number before -2 scaled, which is in (2**(rung - 1), 2**rung]
            rung = tl.maximum((((-2 * scaled).to(tl.int32, bitcast=True) - 1) >> 23) - 126, 0)
            one = (rung * 0 + 1).to(tl.int64) << (8 * tl.minimum(rung, LADDER - 1))
            packed += tl.where(rung < LADDER, one, 0)
        for i in tl.static_range(LADDER):
            numbers += tl.where(rungs >= i, tl.sum(((packed >> (8 * i)) & 255).to(tl.int32), 0), 0)
    heights = -0.5 * tl.exp2(rungs.to(tl.float32))
    return tl.sum(mass, 0), tl.max(tl.where(numbers >= wanted, heights, -float("inf")), 0)


@triton.jit
def largest(row, vocab_size, BLOCK: tl.constexpr):
    """A row's largest logit."""
    found = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(row + ids, mask=ids < vocab_size, other=-float("inf")).to(tl.float32))
    return tl.max(found, 0)
