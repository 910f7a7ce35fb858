"""Biases, masks and penalties of logits, in one pass over them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048
NUM_WARPS = 4


@triton.jit
def _edit_kernel(
    logits, row_stride, rows, bias, tally, penalties, out, vocab_size, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    edit = tl.load(rows + row)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = ids < vocab_size
    x = tl.load(logits + row * row_stride + ids, mask=inside, other=0.0).to(tl.float32)
    if edit >= 0:
        if bias is not None:
            x += tl.load(bias + edit * vocab_size + ids, mask=inside, other=0.0)
        if tally is not None:
            repetition = tl.load(penalties + 3 * edit)
            presence = tl.load(penalties + 3 * edit + 1)
            frequency = tl.load(penalties + 3 * edit + 2)
            seen = tl.load(tally + edit * vocab_size + ids, mask=inside, other=0)
            count = (seen >> 1).to(tl.float32)
            repeated = tl.where(x > 0, x / repetition, x * repetition)
            penalised = repeated - (frequency * count + tl.where(count > 0, presence, 0.0))
            x = tl.where(seen != 0, penalised, x)
    tl.store(out + row * vocab_size + ids, x, mask=inside)


def edit_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    tally: torch.Tensor | None,
    penalties: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """``out`` becomes ``logits``, with each row's bias added and its penalties applied, in this order; see the
    reference.

    Floor: 6 V bytes a row of 16-bit logits that is copied, and 4 V more each for a bias and for a tally.

    Args:
        logits: float32, bfloat16 or float16 [R, V], rows contiguous.
        rows: int64 [R], the row of the following that each row of logits is edited by; negative: it is copied as is.
        bias: float32 [E, V], -inf excludes a token; None: there is none.
        tally: int32 [E, V]: 0 for a token that the sequence has not seen, else 1 + 2 times the number of times that
            it was generated; None: no penalties.
        penalties: float32 [E, 3]: repetition, presence, frequency.
        out: float32 [R, V], contiguous; not the memory of ``logits``.
    """
    number, vocab = logits.shape
    if number:
        _edit_kernel[(number, triton.cdiv(vocab, BLOCK))](
            logits, logits.stride(0), rows, bias, tally, penalties, out, vocab, BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return out
