"""One draw for each row of logits, in one pass over them.

A program goes over a part of a row: it sums the raw distribution (for log-probabilities), and finds the token whose
logit / temperature + Gumbel noise is largest. A second, tiny kernel puts a row's parts together.

Noise is expensive: about thirty instructions a logit, of which Philox takes ten, against two bytes that are read. So a
block first asks whether any of its words is small enough to beat the best so far, which costs one exponential and one
comparison a logit, and mostly none is. Sums are relative to the largest logit of the part's first block, which needs no
reduction; where that overflows or comes to nothing, the part is summed again.

Scores are held in units of log 2 relative to an offset, the largest logit of the block that they are from over the
temperature, and are compared with it in float64: so a score that can win is a small number whatever the temperature,
right to a few 1e-6, and the same whichever blocks one program goes over.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from octavo.kernels.drawn import DrawFailure
from octavo.kernels.triton.noise import LOG2_E, fold_key, gumbel2, quad_words
from octavo.kernels.triton.truncated import is_truncated

NOBODY = tl.constexpr(2**31 - 1)
"""A token id above all others."""

STEEPEST = tl.constexpr(1e30)
"""Lower temperatures than this one's are all as good as 0."""

NOT_FINITE = tl.constexpr(int(DrawFailure.NOT_FINITE))
NO_TOKEN_LEFT = tl.constexpr(int(DrawFailure.NO_TOKEN_LEFT))


class DrawShape(NamedTuple):
    """How a draw is launched."""

    block: int  #: logits held at once
    blocks: int  #: of one part, whose distribution is summed together
    parts: int  #: that one program goes over in turn
    num_warps: int


def draw_shape(num_draws: int, vocab_size: int) -> DrawShape:
    """The launch of ``num_draws`` rows. Longer programs mostly need no noise after their first block, shorter ones fill
    the GPU with few rows. Parts are alike for any number of rows, so that a row's result does not depend on it."""
    if vocab_size <= 1024:
        return DrawShape(1024, 1, 1, 4)
    return DrawShape(2048, 4, 1 if num_draws <= 64 else 2, 4)


@triton.jit
def _finite(x):
    return tl.where(x == -float("inf"), 0.0, x)


@triton.jit
def _sum64(x, y):
    """Exact, or nearly: so that what is compared does not depend on which blocks came before."""
    return x.to(tl.float64) + y.to(tl.float64)


@triton.jit
def _load(row, start, end, NOTHING: tl.constexpr, BLOCK: tl.constexpr):
    ids = start + tl.arange(0, BLOCK)
    return tl.load(row + ids, mask=ids < end, other=NOTHING)


@triton.jit
def _sum_again(row, begin, end, NOTHING: tl.constexpr, BLOCK: tl.constexpr):
    """The largest logit of a part, and the sum of exp(logit - that), by two more passes."""
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(begin, end, BLOCK):
        largest = tl.maximum(largest, _load(row, start, end, NOTHING, BLOCK).to(tl.float32))
    top = tl.max(largest, 0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(begin, end, BLOCK):
        total += tl.exp2((_load(row, start, end, NOTHING, BLOCK).to(tl.float32) - _finite(top)) * LOG2_E)
    return top, tl.sum(total, 0)


@triton.jit
def draw_kernel(
    logits, row_stride, sources, slots, indexes, positions, temperatures, top_ks, top_ps, min_ps, seeds,
    best_scores, best_offsets, best_ids, part_tops, part_sums, vocab_size, num_parts,
    MASKED: tl.constexpr, NOTHING: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Some parts of one draw; grid (draws, programs). ``slots`` None: parameters stand by draw;
    ``sources`` None: logits do. Of truncated rows only the sums are made: see ``truncated.py`` for the draw.

    ``NOTHING`` stands beyond a row's end: -inf, but where -inf is an error the least finite number."""
    draw = tl.program_id(0)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    if slot < 0:
        return
    source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
    row = logits + source * row_stride
    temperature = tl.load(temperatures + slot)
    is_greedy = temperature == 0
    slope = tl.minimum(LOG2_E / temperature, STEEPEST)  # of a greedy row: infinite, and not used
    draws_elsewhere = is_truncated(slot, temperatures, top_ks, top_ps, min_ps)
    position = tl.load(positions + draw)
    k0, k1 = fold_key(tl.load(seeds + slot), tl.load(indexes + draw))

    best = -float("inf")  # score so far, relative to offset
    offset = 0.0
    best_id = NOBODY
    bar = -float("inf")  # best and offset together
    first = tl.program_id(1) * PARTS
    raw = _load(row, first * (BLOCK * BLOCKS), vocab_size, NOTHING, BLOCK)
    for part in range(first, tl.minimum(first + PARTS, num_parts)):
        begin = part * (BLOCK * BLOCKS)
        end = tl.minimum(begin + BLOCK * BLOCKS, vocab_size)
        reference = _finite(tl.max(raw.to(tl.float32), 0))  # sums are relative to it
        sums = tl.zeros((BLOCK,), tl.float32)
        for start in range(begin, end, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            x = raw.to(tl.float32)
            raw = _load(row, start + BLOCK, vocab_size, NOTHING, BLOCK)  # the next one, while this is worked on
            sums += tl.exp2(tl.fma(x, LOG2_E, -reference * LOG2_E))
            if not MASKED:
                sums = tl.fma(x, 0.0, sums)  # NaN from the first that is not finite
            if is_greedy:
                highest = tl.max(x, 0)
                if highest > best:
                    best = highest
                    best_id = tl.min(tl.where(x == highest, ids, NOBODY), 0)
            elif not draws_elsewhere:
                words = quad_words(start // 4 + tl.arange(0, BLOCK // 4), position, k0, k1)
                pairs = tl.join(tl.join(words[0], words[2]), tl.join(words[1], words[3]))
                word = tl.reshape(pairs, (BLOCK,))
                # -log2(1 - v) is at least 1.44 v, so noise beats the bar only where 1.44 v < exp2(scaled - bar).
                # Without that factor there is room for every rounding.
                margin = tl.exp2(tl.fma(x, slope, 32 - bar)) - word.to(tl.float32)
                if (tl.max(margin, 0) > 0) | (bar == -float("inf")):
                    moved = _finite(tl.max(x, 0)) * slope
                    score = tl.fma(x, slope, -moved) + gumbel2(word)
                    highest = tl.max(score, 0)
                    if _sum64(highest, moved) > _sum64(best, offset):
                        best = highest
                        offset = moved
                        best_id = tl.min(tl.where(score == highest, ids, NOBODY), 0)
                        bar = best + offset
        total = tl.sum(sums, 0)
        if (total > 1e30) | (total < 1e-30):
            reference, total = _sum_again(row, begin, end, NOTHING, BLOCK)
        tl.store(part_tops + draw * num_parts + part, reference)
        tl.store(part_sums + draw * num_parts + part, total)
    place = draw * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_scores + place, best)
    tl.store(best_offsets + place, offset)
    tl.store(best_ids + place, best_id)


@triton.jit
def pick_kernel(
    logits, row_stride, sources, slots, temperatures, top_ks, top_ps, min_ps, chosen,
    best_scores, best_offsets, best_ids, part_tops, part_sums, tokens, logprobs, failures, num_programs, num_parts,
    PROGRAMS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Puts a draw's parts together; grid (draws,)."""
    draw = tl.program_id(0)
    slot = draw if slots is None else tl.load(slots + draw).to(tl.int32)
    token = 0
    logprob = 0.0
    failure = 0
    if slot >= 0:
        programs = tl.arange(0, PROGRAMS)
        inside = programs < num_programs
        place = draw * num_programs + programs
        scores = _sum64(
            tl.load(best_scores + place, mask=inside, other=-float("inf")),
            tl.load(best_offsets + place, mask=inside, other=0.0),
        )
        ids = tl.load(best_ids + place, mask=inside, other=NOBODY)
        best = tl.max(scores, 0)
        found = tl.min(tl.where(scores == best, ids, NOBODY), 0)
        token = tl.where(found == NOBODY, 0, found)
        if is_truncated(slot, temperatures, top_ks, top_ps, min_ps):
            token = tl.load(chosen + draw)
        parts = tl.arange(0, PARTS)
        tops = tl.load(part_tops + draw * num_parts + parts, mask=parts < num_parts, other=0.0)
        sums = tl.load(part_sums + draw * num_parts + parts, mask=parts < num_parts, other=0.0)
        shift = _finite(tl.max(tl.where(sums > 0, tops, -float("inf")), 0))
        total = tl.sum(tl.where(sums == 0, 0.0, sums * tl.exp2((tops - shift) * LOG2_E)), 0)
        failure = tl.where(total == 0, NO_TOKEN_LEFT, tl.where(total < float("inf"), 0, NOT_FINITE))
        token = tl.where(failure == 0, token, 0)
        source = draw.to(tl.int64) if sources is None else tl.load(sources + draw)
        logprob = tl.load(logits + source * row_stride + token).to(tl.float32) - shift - tl.log(total)
    tl.store(tokens + draw, tl.cast(token, tl.int64))
    tl.store(logprobs + draw, logprob)
    tl.store(failures + draw, failure)
