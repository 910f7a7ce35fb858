from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import EngineError
from octavo.executor.swap_space import SwapSpace, measure_bandwidth


@given(st.permutations(range(10)), st.permutations(range(10)), st.permutations(range(12)), st.integers(1, 10))
def test_pages_go_out_and_come_back_anywhere(out: list[int], back: list[int], host: list[int], count: int) -> None:
    cache = torch.randint(0, 256, (10, 32), dtype=torch.uint8)
    before, space = cache.clone(), SwapSpace(12, 32)
    space.swap_out(cache, tuple(zip(out[:count], host, strict=False)))
    cache.zero_()
    space.swap_in(cache, tuple(zip(host, back[:count], strict=False)))
    assert torch.equal(cache[back[:count]], before[out[:count]])
    assert not cache[back[count:]].any()


def test_it_is_bounded() -> None:
    cache, space = torch.ones(4, 32, dtype=torch.uint8), SwapSpace(3, 32)
    with pytest.raises(EngineError, match="a swap between block 1 of 4 and host block 3 of 3"):
        space.swap_out(cache, ((0, 0), (1, 3)))
    with pytest.raises(EngineError, match="block -1 of 4 and host block 2 of 3"):
        space.swap_in(cache, ((2, -1),))
    with pytest.raises(EngineError, match="host block 0 of 0"):
        SwapSpace(0, 32).swap_out(cache, ((0, 0),))


def test_measuring_leaves_the_cache_as_it_was() -> None:
    cache = torch.randint(0, 256, (9, 2**16), dtype=torch.uint8)
    before = cache.clone()
    assert 1e6 < measure_bandwidth(SwapSpace(5, 2**16), cache) < 1e13
    assert torch.equal(cache, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_the_pages_are_pinned() -> None:
    cache = torch.randint(0, 256, (10, 32), dtype=torch.uint8, device="cuda")
    before, space = cache.clone(), SwapSpace(4, 32, "cuda")
    assert space._pages.is_pinned()
    space.swap_out(cache, ((3, 0), (7, 2)))
    cache.zero_()
    space.swap_in(cache, ((2, 0), (0, 1)))
    assert torch.equal(cache[[0, 1]], before[[7, 3]])
