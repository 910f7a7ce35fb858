"""The rotation, and what is fused with it, against float64 and against the reference backend."""

from __future__ import annotations

import pytest
import torch
from exactness import DTYPES, close
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards
from rotary_case import Case, turned

from octavo.kernels import QuantizedKv, reference, triton

CASES = st.builds(
    Case,
    rows=st.integers(1, 4),
    num_heads=st.sampled_from([1, 3, 14]),
    num_kv_heads=st.sampled_from([1, 2, 5]),
    dim=st.sampled_from([16, 24, 64, 80]),
    rotated=st.sampled_from([0, 8, 16]),
    dtype=st.sampled_from(DTYPES),
    kv_dtype=st.sampled_from(DTYPES),
    has_q_norm=st.booleans(),
    has_k_norm=st.booleans(),
    block_size=st.sampled_from([5, 16]),
    seed=st.integers(0, 99),
)


@settings(max_examples=20)
@given(CASES, st.booleans(), st.booleans())
def test_norm_rotation_and_write(case: Case, keep_keys: bool, all_rotate: bool) -> None:
    if all_rotate:
        case.rotated = case.dim
        case.__post_init__()
    with backwards():
        heads, cache, kv = case.run(keep_keys)
    q, k, v = case.parts()
    assert close(heads[:, : case.num_heads], q)
    last = case.num_heads + case.num_kv_heads
    before = case.qkv.view(heads.shape)
    if keep_keys:
        assert close(heads[:, case.num_heads : last], k)
    else:
        assert torch.equal(heads[:, case.num_heads : last], before[:, case.num_heads : last])
    assert torch.equal(heads[:, last:], before[:, last:])
    blocks, offsets = case.slots // case.block_size, case.slots % case.block_size
    assert close(kv[blocks, 1, 0, :, offsets], k)
    assert torch.equal(kv[blocks, 1, 1, :, offsets], v.to(case.kv_dtype))
    untouched, old = case.memory()
    old[blocks, 1, :, :, offsets] = kv[blocks, 1, :, :, offsets]
    assert torch.equal(cache, untouched), "other slots and other layers stay as they were"


@settings(max_examples=8)
@given(CASES)
def test_int8(case: Case) -> None:
    """Bit for bit what quantising the kernel's own float32 keys gives."""
    case.kv_dtype = torch.float32
    _, _, exact = case.run(False)
    case.kv_dtype = torch.int8
    heads, cache, kv = case.run(False)
    assert isinstance(kv, QuantizedKv)
    blocks, offsets = case.slots // case.block_size, case.slots % case.block_size
    untouched, old = case.memory()
    k, v = (exact[blocks, 1, which, :, offsets] for which in (0, 1))
    reference.write_kv(k, v, old, 1, case.slots)
    assert torch.equal(cache, untouched)
    assert close(heads[:, : case.num_heads], case.parts()[0])


@settings(max_examples=8)
@given(CASES)
def test_write_kv(case: Case) -> None:
    if case.seed % 2:
        case.kv_dtype = torch.int8
    heads = case.qkv.view(case.rows, -1, case.dim)
    k, v = heads.split((case.num_heads + case.num_kv_heads, case.num_kv_heads), 1)
    k = k[:, case.num_heads :]
    (cache, kv), (right, reference_kv) = case.memory(), case.memory()
    triton.write_kv(k, v, kv, 2, case.slots)
    reference.write_kv(k, v, reference_kv, 2, case.slots)
    assert torch.equal(cache, right)


@pytest.mark.parametrize("rows", [1, 2])
def test_int8_of_zeros_and_of_what_is_not_finite(rows: int) -> None:
    case = Case(rows, 2, 1, 16, 0, torch.float32, torch.int8)
    case.qkv[0] = 0.0
    case.qkv[-1, 2 * 16 + 3] = torch.inf
    case.qkv[-1, 3 * 16 + 3] = torch.nan
    _, _, kv = case.run(False)
    stored = kv.scales[case.slots // 16, 1, :, 0, case.slots % 16]
    assert not stored[-1].isfinite().any()
    if rows > 1:
        assert (stored[0] == 0).all()


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.int8])
def test_rows_without_a_slot_are_not_written(kv_dtype: torch.dtype) -> None:
    case = Case(3, 2, 1, 16, 16, torch.float32, kv_dtype)
    case.slots = torch.tensor([-1, 7, -1])
    heads, cache, kv = case.run(False)
    untouched, old = case.memory()
    assert close(heads[:, :2], case.parts()[0])
    for each, other in ((kv.values, old.values), (kv.scales, old.scales)) if kv_dtype == torch.int8 else ((kv, old),):
        other[0, 1, :, :, 7] = each[0, 1, :, :, 7]
    assert torch.equal(cache, untouched)
    triton.write_kv(heads[:, 2:3], heads[:, 3:], kv, 1, torch.tensor([-1, -1, -1]))
    assert torch.equal(cache, untouched)


@settings(max_examples=8)
@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 5), st.sampled_from([8, 32, 48, 80]), st.booleans(),
    st.sampled_from(DTYPES), st.integers(0, 99),
)  # fmt: skip
def test_rotary_embedding_of_strided_views(
    rows: int, num_heads: int, num_kv_heads: int, dim: int, partial: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    memory = torch.randn(rows, num_heads + num_kv_heads + 2, dim).to(dtype)
    before, positions = memory.clone(), torch.randint(0, 40, (rows,))
    angles = torch.rand(40, dim // (4 if partial else 2)) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    q, k = memory[:, 1 : num_heads + 1], memory[:, num_heads + 1 : -1]
    triton.rotary_embedding(q, k, positions, cos_sin)
    assert close(memory[:, 1:-1], turned(before[:, 1:-1].double(), positions, cos_sin))
    assert torch.equal(memory[:, [0, -1]], before[:, [0, -1]])


def test_no_rows() -> None:
    case = Case(1, 2, 1, 16, 16, torch.float32, torch.float32)
    _, kv = case.memory()
    none = torch.empty(0, dtype=torch.int64)
    triton.rotate_and_write(case.qkv[:0], None, None, 1e-5, case.cos_sin, none, kv, 1, none, 2, 1)
    triton.write_kv(case.qkv[:0].view(0, 4, 16), case.qkv[:0].view(0, 4, 16), kv, 1, none)
