"""Decode attention on the GPU, at real sizes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_on_gpu import cache, fused, on_gpu, paged
from kernel_case import Case

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)

HALVES = (torch.bfloat16, torch.float16)
UNIFORM, SKEWED = [(1, 1000)] * 32, [(1, 12_000), (1, 1), *[(1, 200)] * 60]
HEADS = [(16, 8, 128), (32, 8, 128), (9, 3, 64), (8, 8, 64), (8, 4, 256), (12, 2, 96), (8, 8, 80)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [[(1, 5000)], UNIFORM, SKEWED], ids=["one", "uniform", "skewed"])
def test_decode(lengths: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = Case(lengths, *heads, dtype=dtype)
    case.check(paged(triton, case), fused=False)


@pytest.mark.parametrize("more", [{"window": 128, "has_sinks": True}, {"window": 1000, "softcap": 30.0}])
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_decode_with_everything(more: dict, kv_dtype: torch.dtype, block_size: int) -> None:
    case = Case(SKEWED, 16, 8, 128, block_size, torch.bfloat16, kv_dtype, has_norm=True, **more)
    case.check(fused(triton, case), fused=True)


def test_decode_in_float32() -> None:
    case = Case(SKEWED, 16, 8, 128, has_norm=True)
    case.check(fused(triton, case), fused=True)


def test_a_captured_decode_serves_other_lengths() -> None:
    """One graph, replayed after the batch's lengths and tables have changed under it."""
    case = Case([(1, n) for n in (9000, 1, 130, 16, 17, 300, 2500, 64)], 16, 8, 128, dtype=torch.bfloat16)
    _, kv = cache(case, written=True)
    now = on_gpu(case.meta)
    meta = dataclasses.replace(
        now, context_len=torch.full_like(now.context_len, 3), block_tables=torch.zeros_like(now.block_tables)
    )
    q = case.qkv.cuda().view(8, -1, 128)[:, :16]
    out = torch.full((8, 16, 128), torch.nan, dtype=torch.bfloat16, device="cuda")

    def attend() -> None:
        triton.paged_attention(q, kv, 1, meta, case.scale, out)

    attend()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    meta.block_tables.copy_(now.block_tables)
    meta.context_len.copy_(now.context_len)
    out.fill_(torch.nan)
    graph.replay()
    case.check(out.cpu().flatten(1), fused=False)
    # and with rows that fill up
    meta.context_len[3:].zero_()
    meta.block_tables[3:] = -1
    graph.replay()
    expected = case.expected(fused=False)[:3]
    assert (out[:3].cpu().flatten(1).double() - expected).abs().max() < 1.6e-2
    assert (out[3:] == 0).all()


def test_a_pool_of_more_than_two_to_the_31_items() -> None:
    case = Case([(1, 4000)], 8, 2, 128, dtype=torch.bfloat16)
    pages, _ = cache(case, written=True)
    moved = 2**31 // (case.layout.page_bytes // 2) + 64
    large = torch.empty(moved + len(pages), pages.shape[1], dtype=torch.uint8, device="cuda")
    large[moved:] = pages
    meta = on_gpu(case.meta)
    meta.block_tables[meta.block_tables >= 0] += moved
    out = torch.full((1, 8, 128), torch.nan, dtype=torch.bfloat16, device="cuda")
    q = case.qkv.cuda().view(1, -1, 128)[:, :8]
    triton.paged_attention(q, case.layout.view(large), 1, meta, case.scale, out)
    case.check(out.cpu().flatten(1), fused=False)
