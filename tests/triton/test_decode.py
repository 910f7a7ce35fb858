"""Split-KV decode against float64, over poisoned memory, and how it cuts a batch's contexts."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreter import backwards
from kernel_case import TOLERANCE, Case
from paged_case import attend, check_rows

from octavo.kernels.triton import decode as module
from octavo.kernels.triton.decode import UNIT, decode, find_piece, piece_size


@triton.jit
def _cut(
    query_start, context_len, sizes, owners, num_seqs, window, slots, UNIT: tl.constexpr, HAS_WINDOW: tl.constexpr
):
    """All pieces of a batch: the size, and for each (sequence, number of its first, how many it has)."""
    piece = tl.program_id(0)
    size = piece_size(query_start, context_len, num_seqs, window, slots, UNIT, HAS_WINDOW, 4)
    seq, start, count = find_piece(query_start, context_len, num_seqs, window, size, piece, UNIT, HAS_WINDOW, 4)
    tl.store(sizes + piece, size)
    tl.store(owners + 3 * piece, seq)
    tl.store(owners + 3 * piece + 1, start)
    tl.store(owners + 3 * piece + 2, count)


def cut(
    lengths: list[int], slots: int, window: int | None = None, rows: list[int] | None = None
) -> tuple[int, list[tuple[int, int, int]]]:
    """The size of a batch's pieces in units, and the pieces."""
    number = len(lengths)
    programs = slots if number <= slots else number + slots
    query_start = torch.tensor([0, *(rows or [1] * number)]).cumsum(0).int()
    sizes, owners = torch.full((programs,), -9, dtype=torch.int32), torch.full((programs, 3), -9, dtype=torch.int32)
    _cut[(programs,)](
        query_start, torch.tensor(lengths, dtype=torch.int32), sizes, owners, number, window or 0, slots, UNIT,
        window is not None,
    )  # fmt: skip
    assert (sizes == sizes[0]).all()
    return int(sizes[0]), [tuple(each) for each in owners.tolist() if each[2] > 0]


@settings(max_examples=12)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=9), st.integers(1, 12), st.sampled_from([None, 1, 500]))
def test_pieces_fill_the_gpu_once_or_are_a_fair_share(lengths: list[int], slots: int, window: int | None) -> None:
    size, pieces = cut(lengths, slots, window)
    units = [-(-min(length, window or length) // UNIT) for length in lengths]
    active = sum(unit > 0 for unit in units)

    def count(of: int) -> int:
        return sum(-(-unit // of) for unit in units)

    # every piece of every sequence is there, in order, and none else: all programs beyond them stop
    expected, number = [], 0
    for seq, unit in enumerate(units):
        expected += [(seq, number, -(-unit // size))] * -(-unit // size)
        number += -(-unit // size)
    assert pieces == expected
    if active <= slots:
        assert count(size) <= slots
        # the smallest: one unit less would be too many, or less than a slot's share
        assert size == 1 or count(size - 1) > slots or (size - 1) * slots < sum(units)
    else:
        assert size == max(1, -(-sum(units) // slots))


def test_sequences_that_bring_more_rows_have_no_pieces() -> None:
    size, pieces = cut([300, 900, 300], 4, rows=[1, 5, 1])
    assert size == 2
    assert pieces == [(0, 0, 2)] * 2 + [(2, 2, 2)] * 2


@st.composite
def cases(draw: st.DrawFn) -> Case:
    kv_heads = draw(st.integers(1, 2))
    lengths = draw(st.lists(st.integers(1, 500), min_size=1, max_size=4))
    return Case(
        [(1, length) for length in lengths],
        kv_heads * draw(st.sampled_from([1, 3, 4, 8, 17])),
        kv_heads,
        draw(st.sampled_from([64, 80, 96, 128])),
        block_size=draw(st.sampled_from([1, 7, 16, 64, 256])),
        dtype=draw(st.sampled_from(list(TOLERANCE))),
        kv_dtype=draw(st.sampled_from([None, torch.int8])),
        window=draw(st.sampled_from([None, 1, 33, 200])),
        softcap=draw(st.sampled_from([0.0, 3.0, 30.0])),
        has_sinks=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@settings(max_examples=12)
@given(cases(), st.integers(1, 9), st.booleans())
def test_decode(case: Case, slots: int, reverse: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "num_slots", lambda *_: slots)
        if reverse:
            with backwards():
                out = attend(case, decode)
        else:
            out = attend(case, decode)
    case.check(out, fused=False)


def test_a_long_context_beside_short_ones_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "num_slots", lambda *_: 3)
    case = Case([(1, 5), (1, 2000), (1, 130), (1, 1)], 4, 2, 64, dtype=torch.bfloat16)
    size, pieces = cut([5, 2000, 130, 1], 3)
    assert size * UNIT < 2000
    assert [seq for seq, _, count in pieces if count > 1] == [1] * -(-2000 // (size * UNIT))
    case.check(attend(case, decode), fused=False)


def test_rows_of_other_sequences_are_left_alone() -> None:
    case = Case([(3, 40), (1, 300), (2, 2), (1, 1)], 4, 2, 64)
    check_rows(case, attend(case, decode), [False] * 3 + [True] + [False] * 2 + [True], 2e-5)


def test_padding_gives_zeros_and_reads_nothing() -> None:
    case = Case([(1, 300), (1, 20), (1, 7)], 4, 2, 64, dtype=torch.bfloat16, has_sinks=True)
    case.meta = dataclasses.replace(case.meta, context_len=torch.tensor([300, 0, 7], dtype=torch.int32))
    case.meta.block_tables[1] = -1
    out = attend(case, decode)
    assert (out[1] == 0).all()
    expected = case.expected(fused=False)
    assert (out[[0, 2]].double() - expected[[0, 2]]).abs().max() < 1.6e-2


def test_the_launch_does_not_follow_lengths() -> None:
    """A graph captured at one moment serves any other: the grid is the same whatever the context."""
    seen = []
    for length in (1, 700):
        case = Case([(1, length), (1, 1)], 4, 2, 64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_decode_kernel", _Grids(module._decode_kernel, seen))
            patch.setattr(module, "_reduce_kernel", _Grids(module._reduce_kernel, seen))
            attend(case, decode)
    assert seen[:2] == seen[2:]


class _Grids:
    def __init__(self, kernel: object, seen: list) -> None:
        self._kernel, self._seen = kernel, seen

    def __getitem__(self, grid: tuple[int, ...]) -> object:
        self._seen.append(grid)
        return self._kernel[grid]


def test_nan_stays_in_its_sequence() -> None:
    case = Case([(1, 40), (1, 300), (1, 20)], 4, 2, 64)
    case.qkv[1] = math.nan
    out = attend(case, decode)
    assert out[1].isnan().all()
    assert not out[[0, 2]].isnan().any()


def test_a_pool_of_more_than_two_to_the_31_items() -> None:
    from octavo.kernels import KvLayout
    from octavo.kernels.triton.cache import KvPlace

    case = Case([(1, 40)], 4, 2, 64, dtype=torch.bfloat16)
    layout = KvLayout(2, 2, 64, 16, torch.bfloat16)
    num_blocks = 2**31 // (layout.page_bytes // 2) + 8
    kv = layout.view(layout.allocate(num_blocks))  # pages that nobody touches are never there
    near = case.memory(written=True)
    moved = num_blocks - near.shape[0]
    kv[moved:] = near
    case.meta.block_tables[case.meta.block_tables >= 0] += moved
    out = case.poisoned()
    q = case.qkv.view(1, -1, 64)[:, :4]
    decode(q, KvPlace.of(kv, 1), case.meta, case.scale, out.view(1, 4, 64), None, 0.0, None)
    case.check(out, fused=False)
