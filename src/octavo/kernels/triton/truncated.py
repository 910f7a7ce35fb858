"""Draws of rows with a top-k, top-p or min-p.

One program goes over a row: see ``cutoffs.py`` for how it finds what is left. The draw is made among the tokens that
were copied out for that, mostly a few dozen. Rows that are not truncated cost one program that returns at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.triton.cutoffs import (
    LAST,
    LEAST_KEY,
    copy_above,
    cut,
    largest,
    load_block,
    reached_by,
    survey,
)
from octavo.kernels.triton.noise import LOG2_E, fold_key, gumbel2, token_words
from octavo.kernels.triton.order import order_key, order_value


@triton.jit
def is_truncated(slot, temperatures, top_ks, top_ps, min_ps):
    """Whether a draw with a slot's parameters is not among all tokens. A greedy one might as well be."""
    asked = (tl.load(top_ks + slot) > 0) | (tl.load(top_ps + slot) < 1) | (tl.load(min_ps + slot) > 0)
    return asked & (tl.load(temperatures + slot) != 0)


@triton.jit
def _draw_kept(
    values, value_ids, count, is_copied, top, temperature, min_p, key, last_id, position, k0, k1, BLOCK: tl.constexpr
):
    """The token with the best score of those that are left."""
    best = -float("inf")
    best_id = 0
    for start in range(0, count, BLOCK):
        keys, ids, weights, inside = load_block(values, value_ids, count, is_copied, start, top, temperature, BLOCK)
        kept = inside & ((keys > key) | ((keys == key) & (ids <= last_id))) & (weights >= min_p)
        if tl.max(kept.to(tl.int32), 0) > 0:
            noise = gumbel2(token_words(ids, position, k0, k1))
            score = tl.where(kept, order_value(keys) * LOG2_E + noise, -float("inf"))
            highest = tl.max(score, 0)
            if highest > best:
                best = highest
                best_id = tl.min(tl.where(score == highest, ids, LAST), 0)
    return best_id


@triton.jit
def truncated_kernel(
    logits, row_stride, sources, slots, indexes, positions, temperatures, top_ks, top_ps, min_ps, seeds,
    copies, copy_ids, chosen, vocab_size, LADDER: tl.constexpr, CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token of one truncated draw, int32 in ``chosen`` [draws]; of others nothing is written. Grid (draws,).

    ``copies``, of the logits' dtype, and ``copy_ids``, int32, are [draws, CAPACITY], for the program's own use."""
    draw = tl.program_id(0)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    if slot < 0:
        return
    if not is_truncated(slot, temperatures, top_ks, top_ps, min_ps):
        return
    temperature = tl.load(temperatures + slot)
    top_k = tl.load(top_ks + slot)
    top_p = tl.load(top_ps + slot)
    min_p = tl.load(min_ps + slot)
    source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
    row = logits + source * row_stride
    copies += draw.to(tl.int64) * CAPACITY
    copy_ids += draw.to(tl.int64) * CAPACITY

    top = largest(row, vocab_size, BLOCK)
    cuts_k = (top_k > 0) & (top_k < vocab_size)
    mass, rung = survey(row, vocab_size, top, temperature, tl.where(cuts_k, top_k, vocab_size), LADDER, BLOCK)
    if not cuts_k:
        rung = tl.log(tl.maximum((1 - top_p) * mass / vocab_size, min_p)) - 0.01
    lowest = order_key(rung)
    number = copy_above(row, copies, copy_ids, vocab_size, top, temperature, lowest, CAPACITY, BLOCK)
    is_copied = number <= CAPACITY
    values = row
    count = vocab_size
    if is_copied:
        values = copies
        count = number

    key = LEAST_KEY
    last_id = LAST
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
    k0, k1 = fold_key(tl.load(seeds + slot), tl.load(indexes + draw))
    token = _draw_kept(
        values, copy_ids, count, is_copied, top, temperature, min_p, key, last_id, tl.load(positions + draw), k0, k1,
        BLOCK,
    )  # fmt: skip
    tl.store(chosen + draw, token)
