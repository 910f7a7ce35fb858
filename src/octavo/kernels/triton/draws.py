"""One draw for each row of logits, in one pass over them.

A program goes over a part of a row: it sums the raw distribution (for log-probabilities), and finds the token whose
logit / temperature + Gumbel noise is largest. A second, tiny kernel puts a row's parts together.

Scores are held in units of log 2 relative to an offset (the part's largest logit over the temperature), which the
second kernel brings together: so a score that can win is a small number whatever the temperature, and is right to a few
1e-6. Noise is expensive, about thirty instructions a logit against the two bytes that it reads, of which Philox is ten:
so a tile first asks whether any of its words is small enough to beat the best so far (one exponential and one
comparison a logit), and mostly none is.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from octavo.kernels.drawn import DrawFailure
from octavo.kernels.triton.noise import fold_key, gumbel2, quad_words
from octavo.kernels.triton.order import order_key

NOBODY = tl.constexpr(2**31 - 1)
"""A token id above all others."""

LOG2_E = tl.constexpr(1.4426950408889634)
STEEPEST = tl.constexpr(1e30)
"""Temperatures below the smallest float's reciprocal are all as good as 0."""

NOT_FINITE = tl.constexpr(int(DrawFailure.NOT_FINITE))
NO_TOKEN_LEFT = tl.constexpr(int(DrawFailure.NO_TOKEN_LEFT))


class DrawShape(NamedTuple):
    """How a draw is launched."""

    block: int  #: logits held at once
    blocks: int  #: that one program goes over in turn
    num_warps: int


def draw_shape(num_draws: int, vocab_size: int) -> DrawShape:
    """The launch of ``num_draws`` rows: many short programs for few rows, longer ones, which mostly need no noise after
    their first block, where there are rows enough to fill the GPU."""
    if vocab_size <= 1024:
        return DrawShape(1024, 1, 4)
    if num_draws <= 8:
        return DrawShape(2048, 1, 4)
    return DrawShape(2048, 4, 4) if num_draws <= 64 else DrawShape(2048, 8, 4)


@triton.jit
def _keeps(x, ids, top, temperature, min_p, key, last_id):
    """What top-k, top-p and min-p leave: see ``cutoffs.py``."""
    scaled = tl.div_rn(x - top, tl.zeros_like(x) + temperature)
    keys = order_key(scaled)
    return ((keys > key) | ((keys == key) & (ids <= last_id))) & (tl.exp(scaled) >= min_p)


@triton.jit
def draw_kernel(
    logits, row_stride, sources, slots, indexes, positions, temperatures, top_ks, top_ps, min_ps, seeds,
    tops, cut_keys, cut_ids, part_scores, part_offsets, part_ids, part_tops, part_sums,
    vocab_size, num_parts, MASKED: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One part of one draw; grid (draws, parts). ``slots`` None: parameters stand by draw; ``sources`` None: logits do.

    ``tops``, ``cut_keys`` and ``cut_ids`` are those of ``cutoffs.py``, read only where a row is truncated."""
    draw = tl.program_id(0)
    part = tl.program_id(1)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    if slot < 0:
        return
    source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
    row = logits + source * row_stride
    temperature = tl.load(temperatures + slot)
    is_greedy = temperature == 0
    min_p = tl.load(min_ps + slot)
    is_truncated = (tl.load(top_ks + slot) > 0) | (tl.load(top_ps + slot) < 1) | (min_p > 0)
    is_truncated = is_truncated & (not is_greedy)
    top = 0.0
    cut_key = 0
    cut_id = 0
    if is_truncated:
        top = tl.load(tops + draw)
        cut_key = tl.load(cut_keys + draw)
        cut_id = tl.load(cut_ids + draw)
    position = tl.load(positions + draw)
    k0, k1 = fold_key(tl.load(seeds + slot), tl.load(indexes + draw))
    slope = tl.minimum(LOG2_E / temperature, STEEPEST)  # of a greedy row: infinite, and not used

    most = -float("inf")  # of the raw logits so far
    total = 0.0  # of exp(logit - most)
    best = -float("inf")  # score so far, relative to offset
    offset = 0.0
    best_id = NOBODY
    begin = part * (BLOCK * BLOCKS)
    for start in range(begin, tl.minimum(begin + BLOCK * BLOCKS, vocab_size), BLOCK):
        ids = start + tl.arange(0, BLOCK)
        inside = ids < vocab_size
        x = tl.load(row + ids, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(x, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp2((most - shift) * LOG2_E) + tl.sum(tl.exp2((x - shift) * LOG2_E), 0)
        most = higher
        if not MASKED:  # noqa: SIM102 (one is of compile time)
            if tl.min(tl.where(inside, x, 0.0), 0) == -float("inf"):
                total = float("nan")  # it fails the row, and stays so
        if is_greedy:
            highest = tl.max(x, 0)
            if highest > best:
                best = highest
                best_id = tl.min(tl.where(x == highest, ids, NOBODY), 0)
        else:
            moved = shift * slope
            best += offset - moved
            offset = moved
            if is_truncated:
                x = tl.where(_keeps(x, ids, top, temperature, min_p, cut_key, cut_id) & inside, x, -float("inf"))
            scaled = tl.fma(x, slope, -offset)
            words = quad_words(start // 4 + tl.arange(0, BLOCK // 4), position, k0, k1)
            pairs = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
            word = tl.reshape(pairs, (BLOCK,))
            # -log2(1 - v) is at least 1.44 v, so noise beats the best only where 1.44 v < exp2(scaled - best). Without
            # that factor there is room for every rounding.
            chance = tl.exp2(scaled - best + 32)
            if tl.max((word.to(tl.float32) < chance).to(tl.int32), 0) > 0:
                score = scaled + gumbel2(word)
                highest = tl.max(score, 0)
                if highest > best:
                    best = highest
                    best_id = tl.min(tl.where(score == highest, ids, NOBODY), 0)
    place = draw * num_parts + part
    tl.store(part_scores + place, best)
    tl.store(part_offsets + place, offset)
    tl.store(part_ids + place, best_id)
    tl.store(part_tops + place, most)
    tl.store(part_sums + place, total)


@triton.jit
def pick_kernel(
    logits, row_stride, sources, slots, part_scores, part_offsets, part_ids, part_tops, part_sums,
    tokens, logprobs, failures, num_parts, MASKED: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Puts a draw's parts together; grid (draws,)."""
    draw = tl.program_id(0)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    token = 0
    logprob = 0.0
    failure = 0
    if slot >= 0:
        parts = tl.arange(0, PARTS)
        inside = parts < num_parts
        place = draw * num_parts + parts
        scores = tl.load(part_scores + place, mask=inside, other=-float("inf"))
        offsets = tl.load(part_offsets + place, mask=inside, other=-float("inf"))
        ids = tl.load(part_ids + place, mask=inside, other=NOBODY)
        tops = tl.load(part_tops + place, mask=inside, other=-float("inf"))
        sums = tl.load(part_sums + place, mask=inside, other=0.0)
        common = tl.max(tl.where(tops == -float("inf"), -float("inf"), offsets), 0)
        common = tl.where(common == -float("inf"), 0.0, common)
        scores += tl.where(inside, offsets - common, 0.0)
        best = tl.max(scores, 0)
        found = tl.min(tl.where(scores == best, ids, NOBODY), 0)
        token = tl.where(found == NOBODY, 0, found)
        most = tl.max(tops, 0)
        shift = tl.where(most == -float("inf"), 0.0, most)
        total = tl.sum(sums * tl.exp2((tops - shift) * LOG2_E), 0)
        source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
        logprob = tl.load(logits + source * row_stride + token).to(tl.float32) - shift - tl.log(total)
        failure = tl.where(most == -float("inf"), NO_TOKEN_LEFT if MASKED else NOT_FINITE, 0)
        failure = tl.where((total != total) | (most == float("inf")), NOT_FINITE, failure)
    tl.store(tokens + draw, tl.cast(token, tl.int64))
    tl.store(logprobs + draw, logprob)
    tl.store(failures + draw, failure)
