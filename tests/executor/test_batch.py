"""The flat batch against the same thing said one token at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.batch import build_batch
from octavo.executor.slots import SlotTable
from octavo.plan import PENDING, Chunk, SamplingSpec, SlotInit, Want

BLOCK = 4
WIDTH = 12
CHUNKS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 16), st.booleans()), min_size=1, max_size=6)


def blocks_of(slot: int, group: int, number: int) -> tuple[int, ...]:
    return tuple(1000 * group + 50 * slot + 7 * place % 50 for place in range(number))


@given(CHUNKS, st.integers(1, 2), st.permutations(range(8)), st.booleans())
def test_every_token_stands_where_it_should(specs, groups: int, slots: list[int], decode: bool) -> None:
    state = SlotTable(8, groups, WIDTH, 100)
    chunks = []
    for row, (start, count, waits) in enumerate(specs):
        slot, count = slots[row], 1 if decode else count
        state.take(SlotInit(slot, 70 + row, "r", 0, 0, 1, (1,), SamplingSpec()))
        state.last_token[slot] = 90 + row
        held, needed = -(-start // BLOCK), -(-(start + count) // BLOCK)
        for group in range(groups):
            state.extend(slot, group, 0, blocks_of(slot, group, held))
        tokens = tuple(range(count))
        chunks.append(
            Chunk(
                slot,
                70 + row,
                start,
                count,
                (*tokens[:-1], PENDING) if waits else tokens,
                (held,) * groups,
                tuple(blocks_of(slot, group, needed)[held:] for group in range(groups)),
                start + count - 1,
                Want.SAMPLE if row % 2 else Want.LOGPROBS,
                (row,),
            )
        )
    batch = build_batch(tuple(chunks), state, BLOCK)
    assert batch.wants.tolist() == [chunk.want for chunk in chunks]
    assert batch.slots.tolist() == [chunk.slot for chunk in chunks]
    assert len(batch.meta) == groups
    at = 0
    for row, chunk in enumerate(chunks):
        tokens = [90 + row if token == PENDING else token for token in chunk.tokens]
        for offset, token in enumerate(tokens):
            position = chunk.start + offset
            assert batch.token_ids[at] == token
            for group, meta in enumerate(batch.meta):
                block = blocks_of(chunk.slot, group, WIDTH)[position // BLOCK]
                assert meta.positions[at] == position
                assert meta.slots[at] == block * BLOCK + position % BLOCK
            at += 1
        for group, meta in enumerate(batch.meta):
            end = chunk.start + chunk.count
            needed = -(-end // BLOCK)
            assert meta.query_start[row + 1] == at
            assert meta.context_len[row] == end == batch.ends[row]
            assert meta.block_tables[row, :needed].tolist() == [*blocks_of(chunk.slot, group, needed)]
    for meta in batch.meta:
        assert meta.max_query == max(chunk.count for chunk in chunks)
        assert meta.max_context == max(chunk.start + chunk.count for chunk in chunks)
        assert (meta.slots.dtype, meta.positions.dtype) == (batch.token_ids.dtype, batch.token_ids.dtype)
        assert all(each.is_contiguous() for each in (meta.block_tables, meta.query_start, meta.context_len))
    assert batch.token_ids.shape[0] == at


def test_a_cut_table_forgets_what_was_behind() -> None:
    state = SlotTable(1, 1, WIDTH, 100)
    state.take(SlotInit(0, 7, "r", 0, 0, 1, (1,), SamplingSpec()))

    def tables(start: int, count: int, keep: int, *blocks: int) -> list[int]:
        chunk = Chunk(0, 7, start, count, (5,) * count, (keep,), (blocks,), start, Want.SAMPLE, (0,))
        return build_batch((chunk,), state, BLOCK).meta[0].block_tables[0].tolist()

    assert tables(0, 9, 0, 10, 11, 12) == [10, 11, 12]
    assert tables(9, 1, 2, 20) == [10, 11, 20]  # replaced after a copy-on-write
    assert tables(10, 3, 3, 21) == [10, 11, 20, 21]
    assert tables(4, 1, 2) == [10, 11]  # rolled back
    assert state.table_len[0, 0] == 2
    assert np.array_equal(state.tables[0][0, :2], [10, 11])
