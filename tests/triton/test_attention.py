"""Attention of flat batches, and what a row's bits may depend on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import TOLERANCE, Case
from paged_case import queries

from octavo.kernels.triton import invariant, paged_attention


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 2))
    lengths = []
    for _ in range(draw(st.integers(1, 4))):
        new = draw(st.one_of(st.just(1), st.integers(1, 50)))
        lengths.append((new, new + draw(st.sampled_from([0, 1, 5, 150]))))
    return Case(
        lengths,
        kv_heads * draw(st.sampled_from([1, 3, 4])),
        kv_heads,
        draw(st.sampled_from([64, 80, 128])),
        block_size=draw(st.sampled_from([1, 7, 16, 64])),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        kv_dtype=draw(st.sampled_from([None, torch.int8])),
        window=draw(st.sampled_from([None, None, 1, 33])),
        softcap=draw(st.sampled_from([0.0, 3.0])),
        has_sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=6)
@given(cases(), st.booleans())
def test_paged_attention_is_right_for_any_batch(case: Case, batch_invariant: bool) -> None:
    case.check(case.paged("triton", batch_invariant), fused=False)


@settings(max_examples=6)
@given(cases(), st.booleans(), st.booleans())
def test_fused_attention_is_right_for_any_batch(case: Case, batch_invariant: bool, has_norm: bool) -> None:
    case.has_norm = has_norm
    case.__post_init__()
    out, _ = case.fused("triton", batch_invariant)
    case.check(out, fused=True)


def rows_of(case: Case, chunks: list[int], width: int = 0, padded: bool = False) -> torch.Tensor:
    """The rows of a batch of one sequence, computed ``chunks`` at a time; the table widened to ``width`` blocks, and
    with ``padded`` beside a row that fills up."""
    kv, meta = case.memory(written=True), case.meta
    table = torch.nn.functional.pad(meta.block_tables, (0, width), value=-1)
    outputs, done = [], 0
    for count in chunks:
        mine = slice(done, done + count)
        context = int(meta.positions[mine][-1]) + 1
        done += count
        starts, contexts, tables, q = [0, count], [context], table, queries(case)[mine]
        if padded:
            starts, contexts, tables = [0, count, count + 1], [context, 0], torch.cat((table, -torch.ones_like(table)))
            q = torch.cat((q, torch.full_like(q[:1], torch.nan)))
        part = dataclasses.replace(
            meta,
            query_start=torch.tensor(starts, dtype=torch.int32),
            context_len=torch.tensor(contexts, dtype=torch.int32),
            block_tables=tables,
            max_query=count,
            max_context=context,
        )
        out = torch.full((len(q), case.num_heads, case.dim), torch.nan, dtype=case.dtype)
        paged_attention(q, kv, 1, part, case.scale, out, case.window, case.softcap, case.sinks, batch_invariant=True)
        outputs.append(out[:count])
    assert done == len(case.rows)
    return torch.cat(outputs)


@pytest.mark.parametrize("dtypes", [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.int8)])
@pytest.mark.parametrize("window", [None, 50])
def test_batch_invariant_rows_have_the_same_bits_however_they_are_chunked(
    dtypes: tuple[torch.dtype, torch.dtype | None], window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invariant, "SPLIT", 64)
    case = Case([(40, 150)], 3, 1, 64, 7, dtype=dtypes[0], kv_dtype=dtypes[1], window=window, has_sinks=True)
    whole = rows_of(case, [40])
    case.check(whole.flatten(1), fused=False)
    assert torch.equal(rows_of(case, [23, 15, 1, 1], width=10, padded=True), whole)
    # one program for all parts of a row, joined as it goes, or one for each and a kernel that joins
    monkeypatch.setattr(invariant, "_MOST_ROOM", 0)
    assert torch.equal(rows_of(case, [38, 2]), whole)
    assert torch.equal(rows_of(case, [1, 39]), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariant_rows_do_not_depend_on_other_sequences(dtype: torch.dtype) -> None:
    alone = Case([(5, 130)], 6, 2, 64, dtype=dtype, seed=3)
    crowd = Case([(5, 130), (1, 9), (20, 60), (1, 520)], 6, 2, 64, dtype=dtype, seed=4)
    crowd.past[0] = alone.past[0]
    crowd.qkv[:5] = alone.qkv
    expected = alone.paged("triton", batch_invariant=True)
    assert torch.equal(crowd.paged("triton", batch_invariant=True)[:5], expected)


def test_padding_gives_zeros_however_it_is_computed() -> None:
    for batch_invariant in (False, True):
        case = Case([(1, 70), (1, 20)], 4, 2, 64, dtype=torch.bfloat16, has_sinks=True, window=30)
        case.meta = dataclasses.replace(case.meta, context_len=torch.tensor([70, 0], dtype=torch.int32))
        case.meta.block_tables[1] = -1
        out = case.paged("triton", batch_invariant)
        assert (out[1] == 0).all()
        assert (out[0].double() - case.expected(fused=False)[0]).abs().max() < 1.6e-2


def test_no_rows() -> None:
    case = Case([(1, 3)], 2, 1, 64)
    nothing = torch.empty(0, 2, 64)
    meta = dataclasses.replace(
        case.meta,
        query_start=torch.zeros(1, dtype=torch.int32),
        context_len=torch.empty(0, dtype=torch.int32),
        block_tables=case.meta.block_tables[:0],
    )
    assert paged_attention(nothing, case.memory(written=True), 1, meta, 1.0, nothing) is nothing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.empty(1, 3, 64), "out": torch.empty(1, 3, 64)}, "3 query heads cannot share 2"),
        ({"q": torch.empty(1, 4, 32), "out": torch.empty(1, 4, 32)}, "heads of 32"),
        (
            {key: torch.empty(1, 4, 320) for key in ("q", "out")} | {"kv": torch.empty(4, 2, 2, 2, 16, 320)},
            "heads of 320",
        ),
        ({"out": torch.empty(1, 2, 64)}, "out is"),
        ({"out": torch.empty(1, 4, 128)[..., ::2]}, "one after the other"),
        ({"window": 0}, "window=0"),
        ({"scale": 0.0}, "scale=0.0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict, words: str) -> None:
    case = Case([(1, 3)], 4, 2, 64)
    arguments = {
        "q": torch.empty(1, 4, 64),
        "kv": case.memory(written=True),
        "layer": 1,
        "meta": case.meta,
        "scale": 1.0,
        "out": torch.empty(1, 4, 64),
    }
    with pytest.raises(ValueError, match=words):
        paged_attention(**{**arguments, **change})
