"""Sampling as compiled."""

from __future__ import annotations

import pytest
import torch
from compiling import ARCHITECTURES, Launch, compiled

from octavo.kernels.triton import draw, edit_logits, log_softmax_gather, top_logprobs

ROWS, VOCAB = 256, 151_936


def is_wide(launch: Launch) -> bool:
    """Every reading of a row is by 16 bytes a thread."""
    return launch.count("LDG", ".128") >= 2


@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((each, torch.bfloat16) for each in ARCHITECTURES), (90, torch.float32)]
)
def test_draw(architecture: int, dtype: torch.dtype) -> None:
    logits = torch.empty(ROWS, VOCAB, dtype=dtype)
    floats, ints, longs = (torch.empty(ROWS, dtype=each) for each in (torch.float32, torch.int32, torch.int64))

    def call() -> None:
        parameters = (longs, longs, longs, floats, ints, floats, floats, longs)
        draw(logits, None, *parameters, masked=dtype == torch.float32)

    truncated, one_pass, pick = compiled(architecture, call)
    assert is_wide(truncated)
    assert is_wide(one_pass)
    assert one_pass.registers <= 128, one_pass  # four programs or more at once
    # One multiplication gives both halves of a product, which are what Philox wants.
    assert one_pass.count("IMAD", ".HI") <= 8, one_pass.instructions
    assert pick.grid == (ROWS,)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probabilities(architecture: int) -> None:
    logits = torch.empty(ROWS, VOCAB, dtype=torch.bfloat16)
    (gathered,) = compiled(architecture, lambda: log_softmax_gather(logits, torch.empty(ROWS, dtype=torch.int64)))
    (likeliest,) = compiled(architecture, lambda: top_logprobs(logits, 20))
    assert is_wide(gathered)
    assert is_wide(likeliest)


def test_numbers_that_triton_makes_constants() -> None:
    """It compiles arguments that are 1 into the kernel."""
    logits, longs = torch.empty(1, 500), torch.empty(1, dtype=torch.int64)
    floats, ints = torch.empty(1), torch.empty(1, dtype=torch.int32)
    compiled(90, lambda: top_logprobs(logits, 1))
    compiled(90, lambda: draw(logits, longs, None, longs, longs, floats, ints, floats, floats, longs))


def test_most_alternatives_that_are_sorted_in_registers() -> None:
    compiled(80, lambda: top_logprobs(torch.empty(8, VOCAB, dtype=torch.bfloat16), 1024))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_edits(architecture: int) -> None:
    logits, out = torch.empty(ROWS, VOCAB, dtype=torch.bfloat16), torch.empty(ROWS, VOCAB)
    bias, tally, penalties = torch.empty(8, VOCAB), torch.empty(8, VOCAB, dtype=torch.int32), torch.empty(8, 3)
    rows = torch.empty(ROWS, dtype=torch.int64)
    (launch,) = compiled(architecture, lambda: edit_logits(logits, rows, bias, tally, penalties, out))
    assert launch.count("LDG", ".128") >= 3, "logits, biases, tally"
    assert launch.count("STG", ".128") == launch.count("STG") >= 1
