"""Prefill attention on the GPU, at real sizes; and rows that are bit-equal whatever brought them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_on_gpu import cache, fused, on_gpu, paged
from kernel_case import Case

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)

HALVES = (torch.bfloat16, torch.float16)
WHOLE, CHUNK, MIXED = [(1000, 1000)], [(300, 3000)], [(257, 700), (1, 5000), (64, 64), (1, 1), (2, 130), (513, 520)]
HEADS = [(16, 8, 128), (32, 8, 128), (9, 3, 64), (4, 4, 64), (8, 4, 256), (14, 2, 96), (4, 4, 80)]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", [WHOLE, CHUNK, MIXED], ids=["whole", "chunk", "mixed"])
def test_prefill(lengths: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    case = Case(lengths, *heads, dtype=dtype)
    case.check(fused(triton, case), fused=True)
    case.check(paged(triton, case), fused=False)


@pytest.mark.parametrize("more", [{"window": 128, "has_sinks": True}, {"window": 1000, "softcap": 30.0}])
@pytest.mark.parametrize("kv_dtype", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("block_size", [1, 16, 256])
def test_prefill_with_everything(more: dict, kv_dtype: torch.dtype, block_size: int) -> None:
    case = Case(MIXED, 16, 8, 128, block_size, torch.bfloat16, kv_dtype, has_norm=True, **more)
    case.check(fused(triton, case), fused=True)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_prefill_in_float32(dim: int) -> None:
    case = Case(MIXED, 8, 4, dim, has_norm=True)
    case.check(fused(triton, case), fused=True)


@pytest.mark.parametrize("dtypes", [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)])
@pytest.mark.parametrize("window", [None, 200])
def test_batch_invariant_rows_have_the_same_bits(
    dtypes: tuple[torch.dtype, torch.dtype | None], window: int | None
) -> None:
    """Prefilled, chunked and decoded, beside others and alone."""
    case = Case([(600, 1700)], 16, 8, 128, dtype=dtypes[0], kv_dtype=dtypes[1], window=window, has_sinks=True)
    whole = paged(triton, case, batch_invariant=True)
    case.check(whole, fused=False)
    _, kv = cache(case, written=True)
    meta, q = on_gpu(case.meta), case.qkv.cuda().view(600, -1, 128)[:, :16]
    for first, count in ((0, 64), (64, 535), (599, 1), (300, 1)):
        context = 1100 + first + count
        part = dataclasses.replace(
            meta,
            query_start=torch.tensor([0, count, count + 1], dtype=torch.int32, device="cuda"),
            context_len=torch.tensor([context, context], dtype=torch.int32, device="cuda"),
            block_tables=meta.block_tables.repeat(2, 1),
            max_query=count,
            max_context=context,
        )
        rows = torch.cat((q[first : first + count], q[:1]))
        out = torch.full(rows.shape, torch.nan, dtype=rows.dtype, device="cuda")
        triton.paged_attention(
            rows, kv, 1, part, case.scale, out, window, sinks=case.sinks.cuda(), batch_invariant=True
        )  # fmt: skip
        assert torch.equal(out[:count].flatten(1).cpu(), whole[first : first + count])
