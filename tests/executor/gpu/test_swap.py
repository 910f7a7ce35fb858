from __future__ import annotations

import random

import pytest
import torch
from executor.gpu.stand_in import StandIn
from hypothesis import given
from hypothesis import strategies as st

from octavo import kernels
from octavo.errors import EngineError
from octavo.executor.gpu import swap
from octavo.executor.gpu.swap import PinnedSwapSpace
from octavo.executor.swap_space import measure_bandwidth

REFERENCE = kernels.load("reference")
PAGE = 8


@given(seed=st.integers(0, 10_000), chunk=st.integers(1, 12))
def test_steps_that_swap_copy_and_write_do_what_they_would_one_after_the_other(seed: int, chunk: int) -> None:
    """Random steps in the order of a plan, on streams, beside the same on a list of pages."""
    rng, device = random.Random(seed), StandIn()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swap, "_CHUNK_BYTES", chunk * PAGE)
        space = PinnedSwapSpace(device, 10, PAGE)
    launch = device.kernels(REFERENCE)
    cache = torch.arange(8, dtype=torch.uint8)[:, None].repeat(1, PAGE)
    pages, host, stamp = list(range(8)), [-1] * 10, 8
    for _ in range(12):
        out = tuple(zip(rng.sample(range(8), 3), rng.sample(range(10), 3), strict=True))[: rng.randint(0, 3)]
        if rng.random() < 0.3:
            out = tuple((block, block + 1) for block in range(rng.randint(0, 4), 7))  # a run
        if out:
            space.swap_out(cache, out)
            for block, place in out:
                host[place] = pages[block]
        copies = [(rng.randrange(8), rng.randrange(8)) for _ in range(rng.randint(0, 2))]
        if copies:
            sources, targets = zip(*copies, strict=True)
            space.before_writing(targets)
            launch.copy_blocks(cache, torch.tensor(sources), torch.tensor(targets))
            for source, target in copies:
                pages[target] = pages[source]
        held = [place for place in range(10) if host[place] >= 0]
        back = tuple(zip(rng.sample(held, min(2, len(held))), rng.sample(range(8), 2), strict=False))
        if back and rng.random() < 0.6:
            space.swap_in(cache, back)
            for place, block in back:
                pages[block] = host[place]
        writes = rng.sample(range(8), rng.randint(0, 3))
        space.before_writing(writes)
        for block in writes:
            cache[block].fill_(stamp)
            pages[block], stamp = stamp, stamp + 1
        device.main.launched()
    assert cache[:, 0].tolist() == pages
    assert (cache == cache[:, :1]).all()
    everywhere = tuple((place, block) for block, place in enumerate(held[:8]))
    space.swap_in(cache, everywhere)
    assert cache[: len(everywhere), 0].tolist() == [host[place] for place, _ in everywhere]


def test_only_who_writes_to_a_leaving_block_waits() -> None:
    device = StandIn()
    space, cache = PinnedSwapSpace(device, 4, PAGE), torch.ones(4, PAGE, dtype=torch.uint8)
    space.swap_out(cache, ((0, 0), (1, 1)))
    stream = device._sides[0]
    space.before_writing([2, 3])
    assert stream.done < stream.queued
    assert space.is_reading
    space.before_writing([3, 1])
    assert stream.done == stream.queued
    space.before_writing([0])
    assert not space.is_reading


def test_who_forgets_to_wait_is_found_out() -> None:
    device = StandIn()
    space, cache = PinnedSwapSpace(device, 4, PAGE), torch.ones(4, PAGE, dtype=torch.uint8)
    space.swap_out(cache, ((0, 0),))
    cache[0].fill_(2)
    space.swap_in(cache, ((0, 1),))
    assert cache[1].tolist() == [2] * PAGE


def test_runs_are_one_copy_and_chunks_are_pinned_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = StandIn()
    monkeypatch.setattr(swap, "_CHUNK_BYTES", 4 * PAGE + 3)
    space = PinnedSwapSpace(device, 10, PAGE)
    moves = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (7, 6), (6, 7))
    runs = [(block, len(pages)) for block, pages in space._runs(moves)]
    assert runs == [(0, 3), (3, 2), (7, 1), (6, 1)]
    assert [len(pages) for pages in space._chunks.values()] == [4, 4]
    assert [len(pages) for _, pages in space._runs(((5, 9),))] == [1]
    assert [len(pages) for pages in space._chunks.values()] == [4, 4, 2]


def test_memory_that_cannot_be_pinned_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    device = StandIn()
    cache = torch.arange(4, dtype=torch.uint8)[:, None].repeat(1, PAGE)

    def refuse(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(device, "pinned", refuse)
    space = PinnedSwapSpace(device, 4, PAGE)
    space.swap_out(cache, ((3, 0),))
    space.swap_in(cache, ((0, 1),))
    assert cache[:, 0].tolist() == [0, 3, 2, 3]
    assert "cannot be pinned" in caplog.text


def test_it_is_bounded() -> None:
    space, cache = PinnedSwapSpace(StandIn(), 3, PAGE), torch.ones(4, PAGE, dtype=torch.uint8)
    with pytest.raises(EngineError, match="a swap between block 1 of 4 and host block 3 of 3"):
        space.swap_out(cache, ((0, 0), (1, 3)))
    with pytest.raises(EngineError, match="block -1 of 4 and host block 2 of 3"):
        space.swap_in(cache, ((2, -1),))
    assert not space.is_reading


def test_its_bandwidth_is_measured_as_any_ones() -> None:
    cache = torch.randint(0, 256, (9, PAGE), dtype=torch.uint8)
    before = cache.clone()
    assert measure_bandwidth(PinnedSwapSpace(StandIn(), 5, PAGE), cache) > 0
    assert torch.equal(cache, before)
