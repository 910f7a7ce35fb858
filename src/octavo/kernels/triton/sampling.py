"""Drawing tokens on a GPU: ``draws.py`` in one pass over the logits, ``truncated.py`` with a top-k, top-p or min-p."""

from __future__ import annotations

import math

import torch
import triton

from octavo.kernels.drawn import Drawn
from octavo.kernels.triton import cutoffs
from octavo.kernels.triton.draws import draw_kernel, draw_shape, pick_kernel
from octavo.kernels.triton.truncated import truncated_kernel


def draw(
    logits: torch.Tensor,
    sources: torch.Tensor | None,
    slots: torch.Tensor | None,
    indexes: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    masked: bool = False,
    out: Drawn | None = None,
) -> Drawn:
    """:func:`sample` for a batch whose parameters stand in columns of ``S`` slots, and what a draw reports. Three
    launches, whose grids follow from the shapes alone: it may be captured in a graph.

    Floor: 2 V bytes a row of 16-bit logits, read once (at 256 rows of 151,936: 78 MB, 26 microseconds at 3 TB/s).
    Rows with a top-k or top-p are read four times; those with none of them do not pay for it.

    Tokens are those of the reference wherever its two best scores differ by more than 1e-5, except that a nucleus ends
    where its mass reaches top_p to within 1e-6.

    Args:
        logits: float32, bfloat16 or float16 [R, V], rows contiguous.
        sources: int64 [D], the row of ``logits`` that each draw is made from; None: draw i from row i (D = R).
        slots: int64 [D], where each draw's parameters stand, a negative one is padding, whose draw is token 0 without
            failure; None: draw i in place i.
        indexes, positions: int64 [D], as in :func:`sample`.
        temperature, top_k, top_p, min_p, seeds: [S], as in :func:`sample`.
        masked: -inf excludes a token; otherwise it is as much a failure as a NaN.
        out: where the results go; None: they get new memory.
    """
    number, vocab = len(indexes), logits.shape[1]
    device = logits.device
    if out is None:
        out = Drawn(
            torch.empty(number, dtype=torch.int64, device=device),
            torch.empty(number, dtype=torch.float32, device=device),
            torch.empty(number, dtype=torch.int32, device=device),
        )
    if not number:
        return out
    shape = draw_shape(number, vocab)
    parts = triton.cdiv(vocab, shape.block * shape.blocks)
    programs = triton.cdiv(parts, shape.parts)
    scores, offsets = torch.empty((2, number, programs), dtype=torch.float32, device=device)
    ids = torch.empty((number, programs), dtype=torch.int32, device=device)
    tops, sums = torch.empty((2, number, parts), dtype=torch.float32, device=device)
    copies = torch.empty((number, cutoffs.CAPACITY), dtype=logits.dtype, device=device)
    copy_ids = torch.empty((number, cutoffs.CAPACITY), dtype=torch.int32, device=device)
    chosen = torch.empty(number, dtype=torch.int32, device=device)
    where = (logits, logits.stride(0), sources, slots)
    limits = (temperature, top_k, top_p, min_p)
    truncated_kernel[(number,)](
        *where, indexes, positions, *limits, seeds, copies, copy_ids, chosen, vocab,
        LADDER=cutoffs.LADDER, CAPACITY=cutoffs.CAPACITY, BLOCK=cutoffs.BLOCK, num_warps=cutoffs.NUM_WARPS,
    )  # fmt: skip
    nothing = -math.inf if masked else torch.finfo(logits.dtype).min
    draw_kernel[(number, programs)](
        *where, indexes, positions, *limits, seeds, scores, offsets, ids, tops, sums, vocab, parts,
        MASKED=masked, NOTHING=nothing, BLOCK=shape.block, BLOCKS=shape.blocks, PARTS=shape.parts,
        num_warps=shape.num_warps,
    )  # fmt: skip
    pick_kernel[(number,)](
        *where, *limits, chosen, scores, offsets, ids, tops, sums, *out, programs, parts,
        PROGRAMS=triton.next_power_of_2(programs), PARTS=triton.next_power_of_2(parts), num_warps=1,
    )  # fmt: skip
    return out


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    indexes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token for each row, int64 [B]: :func:`draw` where parameters stand row by row and -inf excludes a token."""
    return draw(logits, None, None, indexes, positions, temperature, top_k, top_p, min_p, seeds, masked=True).tokens


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, of equals the first: int64 [B]; -1 for a row that holds a NaN or an infinity."""
    zeros = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
    nothing, everything = torch.zeros_like(zeros, dtype=torch.float32), torch.ones_like(zeros, dtype=torch.float32)
    top_k = torch.zeros_like(zeros, dtype=torch.int32)
    drawn = draw(logits, None, None, zeros, zeros, nothing, top_k, everything, nothing, zeros)
    return drawn.tokens.masked_fill_(drawn.failures != 0, -1)
