"""Copies of blocks against one after the other."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards

from octavo.kernels import reference, triton


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=11),
    st.sampled_from([1, 30, 64, 4096 + 4, 9000]),
)
def test_pairs_are_copied_in_order(pairs: list[tuple[int, int]], page_bytes: int) -> None:
    cache = torch.randint(0, 256, (5, page_bytes), dtype=torch.uint8)
    right = cache.clone()
    sources, targets = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    reference.copy_blocks(right, sources, targets)
    with backwards():
        triton.copy_blocks(cache, sources, targets)
    assert torch.equal(cache, right)


def test_many_pairs_in_a_chain() -> None:
    """Each reads what the one before it wrote."""
    cache = torch.arange(12, dtype=torch.uint8)[:, None].repeat(1, 16)
    triton.copy_blocks(cache, torch.arange(11), torch.arange(1, 12))
    assert (cache == 0).all()


def test_blocks_beyond_two_to_the_31_elements() -> None:
    """Memory that is not touched costs none."""
    cache = torch.empty(2**27, 25, dtype=torch.uint8)
    cache[-1], cache[3] = torch.arange(25), torch.arange(25, 50)
    triton.copy_blocks(cache, torch.tensor([2**27 - 1, 3]), torch.tensor([2, 2**27 - 2]))
    assert cache[2].tolist() == list(range(25))
    assert cache[-2].tolist() == list(range(25, 50))
