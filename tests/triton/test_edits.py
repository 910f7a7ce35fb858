"""Edits of logits in Triton beside the reference."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.triton import edit_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_tally", [False, True])
def test_edits_are_the_references(dtype: torch.dtype, has_bias: bool, has_tally: bool) -> None:
    torch.manual_seed(1)
    vocab, edits = 2100, 3
    logits = (torch.randn(5, vocab) * 4).to(dtype)
    rows = torch.tensor([2, -1, 0, 2, 1])
    bias = torch.randn(edits, vocab)
    bias[0, 50:70] = -math.inf
    tally = torch.randint(-9, 9, (edits, vocab), dtype=torch.int32).clamp(min=0)
    tally += (tally > 0) * (1 - tally % 2)  # 0, or odd
    penalties = torch.tensor([[1.3, 0.5, 0.2], [1.0, 0.0, 0.0], [0.8, -0.3, 1.5]])
    call = (logits, rows, bias if has_bias else None, tally if has_tally else None, penalties)
    out = torch.full((5, vocab), math.nan)
    assert edit_logits(*call, out) is out
    expected = reference.edit_logits(*call, torch.empty_like(out))
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(out[1], logits[1].float())
