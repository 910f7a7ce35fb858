"""Inputs made on the device beside those made on the host, for random plans that follow from one another."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from executor.gpu.stand_in import StandIn

from octavo.executor.batch import build_batch
from octavo.executor.gpu.columns import ChunkColumns
from octavo.executor.gpu.draws import Draws
from octavo.executor.gpu.inputs import FlatBatch, StepInputs
from octavo.executor.gpu.state import DeviceSlots
from octavo.executor.slots import SlotTable
from octavo.plan import PENDING, Chunk, SamplingSpec, SlotInit, Want

SLOTS, GROUPS, WIDTH, BLOCK, FILLER = 6, 2, 12, 4, 500


class Both:
    """The same sequences in the host's table and on the device."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.host = SlotTable(SLOTS, GROUPS, WIDTH, 100)
        self.slots = DeviceSlots(SLOTS, GROUPS, WIDTH, FILLER, "cpu")
        self.inputs = StepInputs(StandIn(), self.slots, BLOCK, SLOTS, 64, WIDTH * BLOCK)
        self.lengths: dict[int, int] = {}
        self.held = [[0] * GROUPS for _ in range(SLOTS)]
        for slot in range(SLOTS):
            init = SlotInit(slot, slot, str(slot), 0, 0, 1, (1,), SamplingSpec())
            self.host.take(init)
            self.slots.take(init)
            self.lengths[slot] = 0

    def chunk(self, slot: int, count: int) -> Chunk:
        """The next ``count`` tokens, the first one the last sample if there is one; now and then a block changes."""
        start = self.lengths[slot]
        self.lengths[slot] += count
        keeps, added = [], []
        for group in range(GROUPS):
            keep = max(0, self.held[slot][group] - (self.rng.random() < 0.2))
            needed = max(-(-(start + count) // BLOCK), self.held[slot][group])
            keeps.append(keep)
            added.append(tuple(self.rng.randrange(FILLER) for _ in range(needed - keep)))
            self.held[slot][group] = needed
        first = PENDING if self.slots.sampled[slot] else self.rng.randrange(100)
        tokens = (first, *(self.rng.randrange(100) for _ in range(count - 1)))
        return Chunk(slot, slot, start, count, tokens, tuple(keeps), tuple(added), start, Want.SAMPLE, (0,))

    def sample(self, slots: list[int]) -> None:
        for slot in slots:
            self.host.last_token[slot] = self.slots.last_token[slot] = self.rng.randrange(100)
            self.slots.sampled[slot] = True


def same(mine: FlatBatch, theirs: Any, rows: int, sequences: int) -> None:
    assert mine.token_ids[:rows].tolist() == theirs.token_ids.tolist()
    for own, other in zip(mine.meta, theirs.meta, strict=True):
        width = other.block_tables.shape[1]
        for name, size in (("positions", rows), ("slots", rows), ("context_len", sequences)):
            assert getattr(own, name)[:size].tolist() == getattr(other, name).tolist()
        assert own.query_start[: sequences + 1].tolist() == other.query_start.tolist()
        for row, context in enumerate(other.context_len.tolist()):
            filled = -(-context // BLOCK)
            assert own.block_tables[row, :filled].tolist() == other.block_tables[row, :filled].tolist()
        assert own.block_tables.shape[1] >= width
        assert all(tensor.is_contiguous() for tensor in (own.positions, own.slots, own.block_tables))


@pytest.mark.parametrize("seed", range(20))
def test_any_step(seed: int) -> None:
    both = Both(seed)
    for _ in range(4):
        chosen = both.rng.sample(range(SLOTS), both.rng.randint(1, SLOTS))
        chunks = tuple(both.chunk(slot, both.rng.randint(1, 8)) for slot in chosen)
        columns = ChunkColumns.of(chunks, both.slots, BLOCK)
        theirs = build_batch(chunks, both.host, BLOCK)
        mine, _ = both.inputs.send_mixed(columns)
        same(mine, theirs, columns.total, len(chunks))
        assert mine.meta[0].max_query == theirs.meta[0].max_query
        assert mine.meta[0].max_context == theirs.meta[0].max_context
        both.sample(chosen)


@pytest.mark.parametrize("size", [1, 3, 5, 6])
def test_decode_steps_filled_up(size: int) -> None:
    """Rows that fill up write to the block that is nobody's, and look at nothing else."""
    both = Both(size)
    both.sample([*range(SLOTS)])
    for _ in range(30):
        chosen = both.rng.sample(range(SLOTS), both.rng.randint(1, size))
        chunks = tuple(both.chunk(slot, 1) for slot in chosen)
        columns = ChunkColumns.of(chunks, both.slots, BLOCK)
        assert columns.draws_once
        assert both.inputs.fits(columns)
        theirs = build_batch(chunks, both.host, BLOCK)
        both.inputs.send_decode(columns, size)
        mine, rows = both.inputs.decode_batch(size), both.inputs.decode_rows(size)
        same(mine, theirs, len(chunks), len(chunks))
        fillers = size - len(chunks)
        assert rows.slots.tolist() == [*chosen, *[-1] * fillers]
        assert rows.ends.tolist() == [*theirs.ends.tolist(), *[1] * fillers]
        for meta in mine.meta:
            assert meta.slots[len(chunks) :].tolist() == [FILLER * BLOCK] * fillers
            assert meta.context_len[len(chunks) :].tolist() == [1] * fillers
            assert (meta.block_tables[len(chunks) :] == FILLER).all()
            assert len(meta.query_start) == size + 1
        both.sample(chosen)


def test_what_is_drawn_from_which_row() -> None:
    both = Both(0)
    prompt = both.chunk(0, 5)._replace(draws=(0, 1, 2))
    nothing = both.chunk(1, 3)._replace(want=Want.NONE, draws=())
    guesses = both.chunk(2, 4)._replace(drafts=3, draws=(7,))
    beam = both.chunk(3, 2)._replace(want=Want.LOGPROBS, draws=())
    columns = ChunkColumns.of((prompt, nothing, guesses, beam), both.slots, BLOCK)
    draws = Draws.of(columns, both.slots)
    assert draws.rows.tolist() == [4, 8, 9, 10, 11, 13]
    assert draws.owners.tolist() == [0, 2, 2, 2, 2, 3]
    assert draws.ends.tolist() == [5, 1, 2, 3, 4, 2]
    assert draws.sources.tolist() == [0, 0, 0, 1, 2, 3, 4]
    assert draws.indexes.tolist() == [0, 1, 2, 7, 7, 7, 7]
    assert draws.spans == ((0, 3), (3, 3), (3, 7), (0, 1))
    assert draws.own.tolist() == [0]
    assert (draws.num_drawn, draws.num_beams, draws.once) == (5, 1, False)
    assert both.slots.sampled.tolist() == [True, False, False, False, False, False]
    assert not columns.draws_once
    assert torch.equal(both.slots.tables[:, both.slots.filler], torch.full((GROUPS, WIDTH), FILLER, dtype=torch.int32))
