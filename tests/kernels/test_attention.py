"""Attention of both backends against float64, over poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import BACKENDS, INTERPRETED, Case, backend, items, small

from octavo.kernels import Kv, KvLayout, QuantizedKv

EXAMPLES = 6 if INTERPRETED else 40
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 3))
    lengths = []
    for _ in range(draw(st.integers(1, 5))):
        context = draw(st.integers(1, small(400, by=20)))
        new = draw(st.one_of(st.just(1), st.integers(1, min(context, small(90)))))
        lengths.append((min(new, context), context))
    dim = draw(st.sampled_from([16] if INTERPRETED else [8, 32, 40, 48, 64, 80, 96, 128, 256]))
    return Case(
        lengths=lengths,
        num_heads=kv_heads * draw(st.integers(1, 8)),
        num_kv_heads=kv_heads,
        dim=dim,
        block_size=draw(st.sampled_from([1, 2, 7, 16, 32, 64])),
        dtype=draw(st.sampled_from(DTYPES)),
        kv_dtype=draw(st.sampled_from([None, torch.int8])),
        window=draw(st.one_of(st.none(), st.integers(1, 200))),
        softcap=draw(st.sampled_from([0.0, 3.0, 30.0])),
        has_sinks=draw(st.booleans()),
        has_norm=draw(st.booleans()),
        rotary=draw(st.sampled_from([None, 0, 4, 8])),
        seed=draw(st.integers(0, 1000)),
    )


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(), batch_invariant=st.booleans())
def test_fused_attention_is_right_for_any_batch(name: str, case: Case, batch_invariant: bool) -> None:
    out, kv = case.fused(name, batch_invariant)
    case.check(out, fused=True)
    check_memory(case, kv)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(), batch_invariant=st.booleans())
def test_paged_attention_is_right_for_any_batch(name: str, case: Case, batch_invariant: bool) -> None:
    case.check(case.paged(name, batch_invariant), fused=False)


@pytest.mark.usefixtures("two_threads")
@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(), batch_invariant=st.booleans())
def test_fused_attention_is_right_on_two_threads(case: Case, batch_invariant: bool) -> None:
    out, kv = case.fused("cpu", batch_invariant)
    case.check(out, fused=True)
    check_memory(case, kv)


def check_memory(case: Case, kv: Kv) -> None:
    """The new keys and values are in their slots, and nothing else was written."""
    _, k, v = case.new_keys()
    now, before = items(kv), items(case.memory(written=False))
    blocks, offsets = case.meta.slots // case.block_size, case.meta.slots % case.block_size
    for which, expected in ((0, k), (1, v)):
        stored = now[blocks, 1, which, :, offsets].double()
        if isinstance(kv, QuantizedKv):
            # half a step of int8, and what rounding to float32 adds on the way
            error = (stored - expected).abs() / expected.abs().amax(-1, keepdim=True) * 127
            assert error.max() <= 0.501, error.max()
            continue
        tolerance = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}[case.kv_dtype]
        error = ((stored - expected).abs() / (1 + expected.abs())).max().item()
        assert error <= tolerance, error
    now[blocks, 1, :, :, offsets] = 0
    before[blocks, 1, :, :, offsets] = 0
    assert torch.equal(now.nan_to_num(123.0), before.nan_to_num(123.0))


GRID = [
    ([(1, 1)], 1, 1, 32, 16),
    ([(1, small(4096, by=30))], 9, 3, 64, 16),
    ([(1, 300)] * small(40, by=20), 6, 2, 64, 16),
    ([(1, 129), (1, 128), (1, 127)], 16, 8, 128, 16),
    ([(small(256, by=10), small(256, by=10))], 9, 3, 64, 16),
    ([(64, 64), (1, 500), (17, 90), (1, 1), (2, 130)], 8, 2, 80, 7),
    ([(3, 70)], 71, 1, 64, 16),  # one token's query heads fill more than a tile
    ([(1, 70)], 71, 1, 64, 1),
    ([(5, 4096 if not INTERPRETED else 40)], 2, 2, 256, 64),
    ([(130, 600)], 4, 4, 48, 16),
]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", GRID[:4] if INTERPRETED else GRID, ids=lambda shape: f"{shape[0][:2]}-{shape[1:]}")
@pytest.mark.parametrize("dtype", DTYPES[:1] if INTERPRETED else DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 33])
def test_the_grid(name: str, shape: tuple, dtype: torch.dtype, window: int | None) -> None:
    case = Case(*shape, dtype=dtype, window=window)
    case.check(case.fused(name)[0], fused=True)
    case.check(case.paged(name), fused=False)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("window", [None, small(128)])
@pytest.mark.parametrize("dtype", DTYPES[:1] if INTERPRETED else DTYPES, ids=str)
def test_the_sinks_and_windows_of_gpt_oss(name: str, window: int | None, dtype: torch.dtype) -> None:
    """Heads of 64 in groups of eight, every other layer with a window of 128, and a learned sink for each query head:
    a score that takes its share of the softmax and adds nothing."""
    lengths = [(1, small(400)), (small(90), small(300)), (1, 1), (small(40), small(40))]
    case = Case(lengths, small(64, by=4), small(8, by=4), 64, dtype=dtype, window=window, has_sinks=True)
    case.check(case.fused(name)[0], fused=True)
    case.check(case.paged(name), fused=False)
    without = Case(lengths, case.num_heads, case.num_kv_heads, 64, dtype=dtype, window=window)
    assert (case.expected(fused=False) - without.expected(fused=False)).abs().max() > 0.1


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
@pytest.mark.parametrize("lengths", [[(1, 40)], [(9, 40)]], ids=["decode", "prefill"])
def test_the_cache_may_have_another_dtype(name: str, dtypes: tuple, lengths: list) -> None:
    case = Case(lengths, 4, 2, 32, dtype=dtypes[0], kv_dtype=dtypes[1])
    out, kv = case.fused(name)
    case.check(out, fused=True)
    check_memory(case, kv)


@pytest.mark.parametrize("name", BACKENDS)
def test_layers_do_not_touch_each_other(name: str) -> None:
    case = Case([(4, 9), (1, 7)], 4, 2, 32)
    kv = case.memory(written=False)
    before = torch.randn_like(kv[:, 0])
    kv[:, 0] = before
    out = case.poisoned()
    backend(name).fused_attention(case.qkv, None, None, 1e-5, case.cos_sin, kv, 1, case.meta, case.scale, out, 4, 2)
    case.check(out, fused=True)
    assert torch.equal(kv[:, 0], before)


@pytest.mark.skipif(INTERPRETED, reason="the pool is the point")
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("lengths", [[(1, 40)], [(9, 40)]], ids=["decode", "prefill"])
def test_a_pool_of_more_than_two_to_the_31_items(name: str, lengths: list[tuple[int, int]]) -> None:
    case = Case(lengths, 4, 2, 64, dtype=torch.bfloat16)
    layout = KvLayout(2, 2, 64, 16, torch.bfloat16)
    num_blocks = 2**31 // (layout.page_bytes // 2) + 8
    kv = layout.view(layout.allocate(num_blocks))  # pages that nobody touches are never there
    assert kv.numel() > 2**31
    near = case.memory(written=False)
    moved = num_blocks - near.shape[0]
    kv[moved:] = near
    case.meta.block_tables[case.meta.block_tables >= 0] += moved
    case.meta.slots.add_(moved * 16)
    out = case.poisoned()
    backend(name).fused_attention(case.qkv, None, None, 1e-5, case.cos_sin, kv, 1, case.meta, case.scale, out, 4, 2)
    case.check(out, fused=True)
    check_memory_of(kv[moved:], case, moved)


def check_memory_of(kv: torch.Tensor, case: Case, moved: int) -> None:
    case.meta.block_tables[case.meta.block_tables >= 0] -= moved
    case.meta.slots.sub_(moved * 16)
    check_memory(case, kv.clone())


@pytest.mark.parametrize("name", BACKENDS)
def test_write_kv_stores_rows_in_their_slots_and_nowhere_else(name: str) -> None:
    case = Case([(5, 9), (1, 4)], 4, 2, 16, block_size=4, dtype=torch.bfloat16, rotary=0)
    _, k, v = (x.to(torch.bfloat16) for x in case.new_keys())
    kv = case.memory(written=False)
    backend(name).write_kv(k, v, kv, 1, case.meta.slots)
    check_memory(case, kv)


@pytest.mark.parametrize("name", BACKENDS)
def test_nan_in_one_sequence_stays_there(name: str) -> None:
    case = Case([(1, 40), (1, 50), (6, 20)], 4, 2, 32)
    case.qkv[0] = math.nan
    out, _ = case.fused(name)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("lengths", [[(1, small(300))], [(small(40), small(300))]], ids=["decode", "prefill"])
def test_int8_costs_a_hundredth_of_the_output(name: str, lengths: list[tuple[int, int]]) -> None:
    """Beside exact attention over the keys and values that were not rounded; random ones, which is hard: what is lost
    is compared with an average over many values."""
    case = Case(lengths, 4, 2, 64, kv_dtype=torch.int8, rotary=0)
    exact = Case(lengths, 4, 2, 64, rotary=0)
    assert torch.equal(case.qkv, exact.qkv)
    expected, out = exact.expected(fused=True), case.fused(name)[0].double()
    error = ((out - expected).pow(2).mean() / expected.pow(2).mean()).sqrt().item()
    assert 1e-4 < error < 1.5e-2, error


@pytest.mark.parametrize("name", BACKENDS)
def test_what_is_not_finite_stays_in_its_sequence_in_int8(name: str) -> None:
    case = Case([(1, 40), (1, 50), (6, 20)], 4, 2, 32, kv_dtype=torch.int8)
    case.qkv[0, -1] = math.inf
    out, _ = case.fused(name)
    assert out[0, -32:].isnan().all()
    assert not out[1:].isnan().any()


def eager_bfloat16(case: Case, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What attention is in transformers, for one sequence in bfloat16: products of bfloat16, softmax in float32,
    rounded again. Keys and values [context, HK, D]."""
    group = case.num_heads // case.num_kv_heads
    q = case.new_keys()[0].bfloat16().transpose(0, 1)
    k, v = (x.bfloat16().repeat_interleave(group, 1).transpose(0, 1) for x in (keys, values))
    scores = (q @ k.transpose(1, 2)) * case.scale
    at, seen = case.meta.positions[:, None], torch.arange(len(keys))[None]
    weights = scores.float().masked_fill(seen > at, -math.inf).softmax(-1).bfloat16()
    return (weights @ v).transpose(0, 1).flatten(1)


@pytest.mark.skipif(INTERPRETED, reason="shapes must be large enough to average over")
@pytest.mark.parametrize("kv_dtype", [None, torch.int8], ids=str)
def test_prefill_in_bfloat16_is_more_exact_than_eager_attention(kv_dtype: torch.dtype | None) -> None:
    case = Case([(150, 400)], 6, 2, 64, dtype=torch.bfloat16, kv_dtype=kv_dtype)
    out, kv = case.fused("cpu")
    expected = case.expected(fused=True)
    table = case.meta.block_tables[0, :25].long()
    stored = items(kv)[table, 1].permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :400]
    eager = eager_bfloat16(case, *stored)
    errors = [(x.double() - expected).pow(2).mean().sqrt().item() for x in (out, eager)]
    assert errors[0] <= errors[1], errors
