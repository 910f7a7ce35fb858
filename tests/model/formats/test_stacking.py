"""Matrices of several kinds as one."""

from __future__ import annotations

import pytest
import torch

from octavo.model.formats.stacking import stacked
from octavo.model.formats.weights import Weight
from octavo.model.quantized import QuantizedWeight, quantize

CPU = torch.device("cpu")
FULL = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("parts", "bits", "size"),
    [
        ([quantize(FULL, 4, 32), quantize(FULL, 4, 32)], 4, 32),
        ([quantize(FULL, 4, 64), quantize(FULL, 4, 96)], 4, 32),
        ([quantize(FULL, 4, 64), quantize(FULL, 8, 32), quantize(FULL, 8)], 8, 32),
        ([quantize(FULL, 8)], 8, 192),
    ],
)
def test_quantised_ones_become_one_of_the_finest_kind(parts: list[QuantizedWeight], bits: int, size: int) -> None:
    made = stacked(parts, torch.float32, CPU)
    assert isinstance(made, QuantizedWeight)
    assert (made.bits, made.group_size) == (bits, size)
    assert torch.equal(made.dequantized(), torch.cat([part.dequantized() for part in parts]))


def test_one_in_full_makes_all_full() -> None:
    parts: list[Weight] = [FULL, quantize(FULL, 8)]
    made = stacked(parts, torch.bfloat16, CPU)
    assert isinstance(made, torch.Tensor)
    assert torch.equal(made, torch.cat([FULL, quantize(FULL, 8).dequantized()]).bfloat16())


def test_what_is_stacked_is_no_view() -> None:
    made = stacked([FULL], torch.float32, CPU)
    assert isinstance(made, torch.Tensor)
    assert made.data_ptr() != FULL.data_ptr()
