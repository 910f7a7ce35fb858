"""What a row's bits may depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from kernel_case import BACKENDS, Case, backend, small

LENGTH = small(200, by=5)
DTYPES = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)]
SHAPES = [(9, 3, 64), (4, 4, 32), (8, 1, 40)]


def prefilled(name: str, case: Case, chunks: list[int], batch_invariant: bool) -> torch.Tensor:
    """The rows of one sequence, computed ``chunks`` at a time from nothing."""
    kv = case.left = case.layout.view(case.layout.allocate(int(case.meta.block_tables.max()) + 1))
    outputs, done = [], 0
    for count in chunks:
        mine = slice(done, done + count)
        done += count
        meta = dataclasses.replace(
            case.meta,
            query_start=torch.tensor([0, count], dtype=torch.int32),
            context_len=torch.tensor([done], dtype=torch.int32),
            positions=case.meta.positions[mine].contiguous(),
            slots=case.meta.slots[mine].contiguous(),
            max_query=count,
            max_context=done,
        )
        out = torch.full((count, case.num_heads * case.dim), torch.nan, dtype=case.dtype)
        backend(name).fused_attention(
            case.qkv[mine].clone(), case.norms[0], case.norms[1], 1e-5, case.cos_sin, kv, 1, meta, case.scale, out,
            case.num_heads, case.num_kv_heads, case.window, case.softcap, case.sinks, batch_invariant,
        )  # fmt: skip
        outputs.append(out)
    assert done == len(case.rows)
    return torch.cat(outputs)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_batch_invariant_rows_have_the_same_bits_however_they_are_chunked(
    name: str, shape: tuple[int, int, int], window: int | None, dtypes: tuple[torch.dtype, torch.dtype | None]
) -> None:
    dtype, kv_dtype = dtypes
    case = Case(
        [(LENGTH, LENGTH)], *shape, 7, window=window, dtype=dtype, kv_dtype=kv_dtype, has_norm=True, has_sinks=True
    )
    whole = prefilled(name, case, [LENGTH], batch_invariant=True)
    case.check(whole, fused=True)
    sevens = [7] * (LENGTH // 7) + ([LENGTH % 7] if LENGTH % 7 else [])
    for chunks in (sevens, [LENGTH - 3, 1, 1, 1], [1] * LENGTH):
        assert torch.equal(prefilled(name, case, chunks, batch_invariant=True), whole)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("new", [1, 5, 70])
def test_a_row_does_not_depend_on_the_other_sequences(name: str, batch_invariant: bool, new: int) -> None:
    own = (small(new, by=10), small(700, by=10))
    alone = Case([own], 6, 2, 32, seed=3)
    others = [(1, 9), (small(40), small(60)), *[(1, small(130))] * small(30, by=10)]
    crowd = Case([own, *others], 6, 2, 32, seed=4)
    crowd.past[0] = alone.past[0]
    crowd.qkv[: own[0]] = alone.qkv
    crowd.cos_sin[: len(alone.cos_sin)] = alone.cos_sin
    expected = alone.fused(name, batch_invariant)[0]
    assert torch.equal(crowd.fused(name, batch_invariant)[0][: own[0]], expected)


def test_the_number_of_threads_changes_no_bit() -> None:
    case = Case([(1, small(1000, by=3)), (small(100), small(300))], 6, 2, 64)
    single = Case([(1, small(1000, by=3))], 6, 2, 64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            backend("cpu").set_num_threads(threads)
            results.append((case.fused("cpu")[0], single.fused("cpu")[0]))
    finally:
        backend("cpu").set_num_threads(before)
    for mixed, alone in results[1:]:
        assert torch.equal(mixed, results[0][0])
        assert torch.equal(alone, results[0][1])
