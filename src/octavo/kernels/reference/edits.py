"""Biases, masks and penalties of logits, from what a device remembers of each sequence."""

from __future__ import annotations

import torch


def edit_logits(
    logits: torch.Tensor,
    rows: torch.Tensor,
    bias: torch.Tensor | None,
    tally: torch.Tensor | None,
    penalties: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """``out`` becomes ``logits``, with each row's bias added and its penalties applied, in this order.

    The repetition penalty r makes a seen token's logit x into x / r where it is positive, x r where it is not (Keskar
    et al., CTRL, 2019); then frequency times the token's count, and presence where that is not 0, are subtracted.

    Args:
        logits: floating [R, V].
        rows: int64 [R], the row of the following that each row of logits is edited by; negative: it is copied as is.
        bias: float32 [E, V], -inf excludes a token; None: there is none.
        tally: int32 [E, V]: 0 for a token that the sequence has not seen, else 1 + 2 times the number of times that
            it was generated; None: no penalties.
        penalties: float32 [E, 3]: repetition, presence, frequency.
        out: float32 [R, V]; not the memory of ``logits``.
    """
    out.copy_(logits)
    at, edited = rows.clamp(min=0), (rows >= 0)[:, None]
    if bias is not None:
        out.add_(torch.where(edited, bias[at], 0.0))
    if tally is not None:
        seen, counts = tally[at], tally[at] >> 1
        repetition, presence, frequency = (column[:, None] for column in penalties[at].unbind(1))
        values = out.clamp(min=0) / repetition + out.clamp(max=0) * repetition  # one of the two is 0
        values -= frequency * counts + presence * (counts > 0)
        out.copy_(torch.where(edited & (seen != 0), values, out))
    return out
