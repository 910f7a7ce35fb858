"""Swapping on streams of a real device, with pages large enough for a copy to be overtaken."""

from __future__ import annotations

import random

import pytest
import torch

from octavo.executor.gpu.accelerator import CudaAccelerator
from octavo.executor.gpu.swap import PinnedSwapSpace
from octavo.executor.swap_space import measure_bandwidth

PAGE, BLOCKS, HOSTS = 2**22, 24, 70  # pinned in two pieces


@pytest.mark.parametrize("seed", range(3))
def test_steps_that_swap_and_write_do_what_they_would_one_after_the_other(seed: int) -> None:
    rng, space = random.Random(seed), PinnedSwapSpace(CudaAccelerator(), HOSTS, PAGE)
    cache = torch.arange(BLOCKS, dtype=torch.uint8, device="cuda")[:, None].repeat(1, PAGE)
    pages, host, stamp = list(range(BLOCKS)), [-1] * HOSTS, BLOCKS
    for _ in range(40):
        first, place = rng.randrange(BLOCKS - 4), rng.randrange(HOSTS - 4)
        out = tuple((first + i, place + i) for i in range(rng.randint(1, 4)))
        space.swap_out(cache, out)
        for block, at in out:
            host[at] = pages[block]
        held = [at for at in range(HOSTS) if host[at] >= 0]
        back = tuple(zip(rng.sample(held, 1), rng.sample(range(BLOCKS), 1), strict=True))
        space.swap_in(cache, back)
        for at, block in back:
            pages[block] = host[at]
        writes = [block for block, _ in out[:2]] + rng.sample(range(BLOCKS), 2)  # what is just being read among them
        space.before_writing(writes)
        for block in writes:
            cache[block].fill_(stamp % 256)
            pages[block], stamp = stamp % 256, stamp + 1
    torch.cuda.synchronize()
    assert all(chunk.is_pinned() for chunk in space._chunks.values())
    assert cache[:, ::4097].tolist() == [[page] * len(range(0, PAGE, 4097)) for page in pages]


def test_the_link_is_fast() -> None:
    cache = torch.randint(0, 256, (BLOCKS, PAGE), dtype=torch.uint8, device="cuda")
    before = cache.clone()
    assert measure_bandwidth(PinnedSwapSpace(CudaAccelerator(), HOSTS, PAGE), cache) > 0
    assert torch.equal(cache, before)
