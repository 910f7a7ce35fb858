"""Prefill against float64, over poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards
from kernel_case import TOLERANCE, Case
from paged_case import attend, check_rows, queries

from octavo.kernels.triton.cache import KvPlace
from octavo.kernels.triton.prefill import prefill


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 2))
    lengths = []
    for _ in range(draw(st.integers(1, 3))):
        new = draw(st.integers(2, 90))
        lengths.append((new, new + draw(st.sampled_from([0, 0, 1, 5, 64, 200]))))
    return Case(
        lengths,
        kv_heads * draw(st.sampled_from([1, 3, 4, 8])),
        kv_heads,
        draw(st.sampled_from([64, 80, 96, 128])),
        block_size=draw(st.sampled_from([1, 7, 16, 64, 256])),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        window=draw(st.sampled_from([None, None, 1, 33, 200])),
        softcap=draw(st.sampled_from([0.0, 3.0, 30.0])),
        has_sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


def with_own(case: Case) -> torch.Tensor:
    """The batch's own keys and values from its rows; their slots hold NaN."""
    rows = len(case.rows)
    own = case.qkv.view(rows, -1, case.dim)[:, case.num_heads :].unflatten(1, (2, -1)).unbind(1)
    past = iter(range(rows))
    for seq, (new, context) in enumerate(case.lengths):
        for position in range(context - new, context):
            row = next(past)
            for which in (0, 1):
                case.past[seq][which][position] = own[which][row]
    out = case.poisoned()
    heads = out.view(rows, case.num_heads, case.dim)
    kv = KvPlace.of(case.memory(written=False), 1)
    prefill(queries(case), own, kv, case.meta, case.scale, heads, case.window, case.softcap, case.sinks)
    return out


@settings(max_examples=10)
@given(cases(), st.booleans())
def test_own_keys_from_the_batch(case: Case, reverse: bool) -> None:
    if reverse:
        with backwards():
            out = with_own(case)
    else:
        out = with_own(case)
    case.check(out, fused=False)


@settings(max_examples=8)
@given(cases(), st.booleans())
def test_all_keys_from_blocks(case: Case, quantized: bool) -> None:
    if quantized:
        case = Case(**{**_fields(case), "kv_dtype": torch.int8})
    case.check(attend(case, prefill, None), fused=False)


def _fields(case: Case) -> dict:
    return {name: getattr(case, name) for name in Case.__dataclass_fields__}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[(300, 300)], [(150, 900), (2, 400)]], ids=["whole", "chunk"])
def test_tiles_without_a_mask(dtype: torch.dtype, lengths: list[tuple[int, int]]) -> None:
    case = Case(lengths, 2, 1, 64, dtype=dtype)
    case.check(with_own(case), fused=False)
    case.check(attend(case, prefill, None), fused=False)


def test_more_heads_share_keys_than_a_tile_has_rows() -> None:
    case = Case([(3, 70)], 71, 1, 64)
    case.check(with_own(case), fused=False)


def test_rows_of_other_sequences_are_left_alone() -> None:
    case = Case([(1, 40), (30, 60), (1, 1), (2, 2)], 4, 2, 64)
    check_rows(case, attend(case, prefill, None), [False] + [True] * 30 + [False] + [True] * 2, 2e-5)


def test_nan_stays_in_its_sequence() -> None:
    case = Case([(40, 40), (9, 300), (5, 20)], 4, 2, 64)
    case.qkv[40:49] = math.nan
    out = with_own(case)
    assert out[40:49].isnan().all()
    assert not out[:40].isnan().any()
    assert not out[49:].isnan().any()
