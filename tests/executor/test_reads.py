"""Which rows are read, and which of their samples count."""

import numpy as np
import pytest

from octavo.executor.batch import build_batch
from octavo.executor.reads import Reads, verify
from octavo.executor.slots import SlotTable
from octavo.plan import Chunk, ChunkResult, Sample, SamplingSpec, SlotInit, Want

ERROR = ChunkResult(error="not finite")


def drew(*tokens: int) -> list[ChunkResult]:
    return [ERROR if token < 0 else ChunkResult((Sample(token),)) for token in tokens]


def chunk(slot: int, start: int, tokens: tuple[int, ...], drafts: int = 0, want: Want = Want.SAMPLE) -> Chunk:
    end = start + len(tokens)
    draws = (0,) if want is Want.SAMPLE else ()
    first = end if want is Want.NONE else end - 1 - drafts
    return Chunk(slot, slot, start, len(tokens), tokens, (0,), (tuple(range(5)),), first, want, draws, drafts)


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ((7, 8, 9), [7, 8, 9]),  # both drafts are right, and a token comes after them
        ((7, 5, 9), [7, 5]),  # what was drawn in place of the second counts, what was drawn after it does not
        ((5, 8, 9), [5]),
        ((7, 5, -1), [7, 5]),  # what fails behind a wrong draft fails for nothing
        ((7, -1, 9), [7]),  # what fails behind a right one fails in the next step, if it does
        ((-1, 8, 9), None),
    ],
)
def test_samples_count_up_to_the_first_that_is_no_draft(rows: tuple[int, ...], counts: list[int] | None) -> None:
    result = verify(chunk(0, 3, (6, 7, 8), drafts=2), drew(*rows))
    if counts is None:
        assert result == ERROR
    else:
        assert [sample.token for sample in result.samples] == counts
        assert result.error is None


@pytest.fixture
def state() -> SlotTable:
    table = SlotTable(4, 1, 5, 20)
    for slot in range(4):
        table.take(SlotInit(slot, slot, "r", 0, 0, 1, (1,), SamplingSpec()))
    return table


def test_rows_of_a_batch_with_drafts(state: SlotTable) -> None:
    plan = (
        chunk(0, 4, (6, 7, 8), drafts=2),
        chunk(1, 0, (1, 2), want=Want.NONE),
        chunk(2, 9, (3,)),
        chunk(3, 2, (4, 5), drafts=1),
    )
    batch = build_batch(plan, state, 4)
    reads = Reads.of(batch)
    assert reads.rows.tolist() == [0, 1, 2, 5, 6, 7]
    assert reads.slots.tolist() == [0, 0, 0, 2, 3, 3]
    assert reads.positions.tolist() == [5, 6, 7, 10, 3, 4]
    assert reads.wants.tolist() == [Want.SAMPLE] * 6
    assert reads.draws == ((0,),) * 6
    state.last_token[:] = np.array([9, 9, 3, 9])
    results = reads.gather(batch, drew(7, 5, 9, 3, 6, 9), state)
    assert [[sample.token for sample in result.samples] for result in results] == [[7, 5], [], [3], [6]]
    assert state.last_token[[0, 2, 3]].tolist() == [5, 3, 6]


def test_rows_of_a_batch_without(state: SlotTable) -> None:
    batch = build_batch((chunk(0, 4, (6, 7, 8)), chunk(1, 0, (1, 2), want=Want.NONE)), state, 4)
    reads = Reads.of(batch)
    assert (reads.rows.tolist(), reads.positions.tolist(), reads.counts) == ([2], [7], None)
    assert reads.gather(batch, drew(7), state) == [*drew(7), ChunkResult()]
