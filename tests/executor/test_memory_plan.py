import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.executor.memory_plan import blocks_for, longest_context, plan_memory
from octavo.plan import LayerGroup

GIB = 2**30


def plan(
    available: int = 8 * GIB,
    weights: int = GIB,
    page: int = 2**16,
    longest: int = 4096,
    windows: tuple[int | None, ...] = (None,),
    **keywords,
):
    return plan_memory(
        available_bytes=available,
        weights_bytes=weights,
        page_bytes=page,
        model_max_len=longest,
        config=EngineConfig(**keywords),
        groups=tuple(LayerGroup(2, window) for window in windows),
    )


def test_the_pool_takes_its_share_of_what_the_weights_leave() -> None:
    made = plan(available=3 * GIB, weights=GIB, memory_utilization=0.25)
    assert made.num_blocks == GIB // 2 // 2**16
    assert made.kv_bytes == GIB // 2
    assert made.max_model_len == 4096
    assert made.tokens == made.num_blocks * 16
    assert made.concurrent(512) == made.num_blocks // 32
    assert made.concurrent_at_full_context == made.num_blocks // 256
    assert made.notes == ()


def test_swap_space_is_set_aside_before_the_pool() -> None:
    made = plan(available=4 * GIB, weights=GIB, memory_utilization=0.5, swap_space=1.5)
    assert made.num_host_blocks == 3 * GIB // 2 // 2**16
    assert made.swap_bytes == 3 * GIB // 2
    assert made.kv_bytes == 3 * GIB // 4  # half of what is left
    assert plan().num_host_blocks == plan().swap_bytes == 0


def test_swap_space_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"swap_space=7\.0 GiB leaves no room .*: 7\.0 GiB is free after the weights"):
        plan(swap_space=7.0)
    with pytest.raises(ConfigError, match=r"swap_space=10000 GiB leaves no room"):
        plan(swap_space=10_000)
    with pytest.raises(ConfigError, match=r"swap_space=1e-06 GiB is less than one block of 65536 bytes"):
        plan(swap_space=1e-6)
    with pytest.raises(
        ConfigError, match=r"num_blocks=114688 takes 7\.0 GiB and 6\.0 GiB is free after the weights and"
    ):
        plan(num_blocks=114_688, swap_space=1)


def test_the_pool_is_no_larger_than_the_largest_batch_can_use() -> None:
    assert plan(available=10**15, max_num_seqs=3, longest=1000).num_blocks == 3 * 63


def test_a_context_that_does_not_fit_is_cut_in_one_line() -> None:
    made = plan(available=GIB + 2**22, weights=GIB, memory_utilization=0.5)
    assert made.num_blocks == 32
    assert made.max_model_len == 512
    assert made.notes == ("context cut from 4096 to 512 tokens: the pool holds 32 blocks of 16",)
    assert plan(num_blocks=10).max_model_len == 160


def test_an_explicit_context_is_served_or_refused() -> None:
    assert plan(max_model_len=100, num_blocks=7).max_model_len == 100
    with pytest.raises(ConfigError, match=r"max_model_len=100 .*holds 96 tokens; raise num_blocks to 7"):
        plan(max_model_len=100, num_blocks=6)
    with pytest.raises(ConfigError, match=r"max_model_len=4000 .*15\.6 MiB is needed: raise memory_utilization"):
        plan(available=GIB + 2**22, max_model_len=4000)
    with pytest.raises(ConfigError, match="max_model_len=5000 exceeds the model's own 4096"):
        plan(max_model_len=5000)


def test_windows_let_a_pool_serve_longer_contexts() -> None:
    few = {"num_blocks": 100, "max_num_batched_tokens": 32}
    assert plan(windows=(None, None, None), **few).max_model_len == 33 * 16
    mixed = plan(windows=(None, 64, 64), **few)
    assert mixed.max_model_len == (100 - 2 * 7) * 16  # 64 - 1 + 32 tokens, wherever in a block they begin
    assert plan(windows=(64,), **few).max_model_len == 4096
    assert plan(windows=(64,), **few).concurrent_at_full_context == 100 // 7
    assert plan(windows=(64,), **few).tokens == 100 // 7 * 4096
    assert mixed.tokens == mixed.max_model_len
    assert plan(windows=(64,), num_blocks=100, max_num_batched_tokens=32, depth=1).concurrent_at_full_context == 11


@given(
    windows=st.lists(st.none() | st.integers(1, 300), min_size=1, max_size=4),
    num_blocks=st.integers(0, 200),
    upto=st.integers(1, 3000),
    block_size=st.integers(1, 32),
    stride=st.integers(1, 200),
)
def test_the_longest_context_is_the_longest(windows, num_blocks, upto, block_size, stride) -> None:
    groups = [LayerGroup(1, window) for window in windows]
    tokens = longest_context(num_blocks, upto, block_size, groups, stride)
    assert 0 <= tokens <= upto
    assert not tokens or blocks_for(tokens, block_size, groups, stride) <= num_blocks
    assert tokens == upto or blocks_for(tokens + 1, block_size, groups, stride) > num_blocks


def test_what_memory_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the weights take 9\.0 GiB and 8\.0 GiB"):
        plan(weights=9 * GIB)
    with pytest.raises(ConfigError, match=r"num_blocks=200000 takes .* lower it to 114688"):
        plan(num_blocks=200_000)
    with pytest.raises(ConfigError, match="num_blocks=1 is less than one block for each of 2"):
        plan(num_blocks=1, windows=(None, None))
    with pytest.raises(ConfigError, match="too few to continue a prompt"):
        plan(num_blocks=1, block_size=1)


@given(
    available=st.integers(1, 2**40),
    weights=st.integers(0, 2**38),
    page=st.integers(1, 2**24),
    longest=st.integers(2, 2**20),
    windows=st.lists(st.none() | st.integers(1, 3000), min_size=1, max_size=4).map(tuple),
    block_size=st.integers(1, 64),
    num_blocks=st.none() | st.integers(1, 10**6),
    utilization=st.floats(0.01, 1.0),
    swap_space=st.sampled_from([0.0, 0.01, 1.0, 50.0]),
    max_num_seqs=st.integers(1, 1000),
    step=st.integers(1, 4096),
    depth=st.integers(0, 1),
)
def test_a_plan_holds_what_it_promises(
    available,
    weights,
    page,
    longest,
    windows,
    block_size,
    num_blocks,
    utilization,
    swap_space,
    max_num_seqs,
    step,
    depth,
) -> None:
    try:
        made = plan(
            available,
            weights,
            page,
            longest,
            windows,
            max_num_batched_tokens=step,
            depth=depth,
            block_size=block_size,
            num_blocks=num_blocks,
            memory_utilization=utilization,
            swap_space=swap_space,
            max_num_seqs=max_num_seqs,
        )
    except ConfigError:
        assume(False)
        return
    groups, stride = [LayerGroup(2, window) for window in windows], step * (depth + 1)
    one = blocks_for(made.max_model_len, block_size, groups, stride)
    assert 2 <= made.max_model_len <= longest
    assert one <= made.num_blocks
    assert made.weights_bytes + made.kv_bytes + made.swap_bytes <= available
    assert made.swap_bytes <= swap_space * GIB < made.swap_bytes + page
    assert made.concurrent_at_full_context >= 1
    assert (made.max_model_len < longest) == bool(made.notes)
    if made.notes:  # cut no further than it had to be
        assert blocks_for(made.max_model_len + block_size, block_size, groups, stride) > made.num_blocks
    if num_blocks is None:
        assert made.num_blocks <= max_num_seqs * blocks_for(longest, block_size, groups, stride)
    else:
        assert made.num_blocks == num_blocks
