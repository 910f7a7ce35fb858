"""Copies of blocks on the GPU against one after the other."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels import reference

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)


@pytest.mark.parametrize("page_bytes", [60, 2**16, 1_835_008])
@pytest.mark.parametrize("num_pairs", [1, 7, 200])
def test_pairs_are_copied_in_order(num_pairs: int, page_bytes: int) -> None:
    """Most of them read what another wrote, or write over it."""
    torch.manual_seed(num_pairs)
    cache = torch.randint(0, 256, (30, page_bytes), dtype=torch.uint8, device="cuda")
    right = cache.clone()
    sources, targets = torch.randint(0, 30, (2, num_pairs), device="cuda")
    reference.copy_blocks(right, sources, targets)
    triton.copy_blocks(cache, sources, targets)
    assert torch.equal(cache, right)
