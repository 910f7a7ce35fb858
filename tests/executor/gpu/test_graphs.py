from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from executor.gpu.stand_in import StandIn
from executor.gpu.stand_in_engine import settings_of, stand_in_engine
from hypothesis import given
from hypothesis import strategies as st

from octavo import EngineConfig, LLMEngine
from octavo.executor.gpu.graphs import GraphLadder, ladder_sizes

GIB = 2**30


@given(most=st.integers(1, 5000), rows=st.integers(1, 5000))
def test_the_ladder_ends_where_it_should_and_little_is_padding(most: int, rows: int) -> None:
    sizes = ladder_sizes(most)
    assert sizes[0] == 1
    assert sizes[-1] == most
    assert all(small < large for small, large in itertools.pairwise(sizes))
    if rows <= most:
        size = GraphLadder(StandIn(), sizes, GIB).size_for(rows)
        assert rows <= size
        assert size - rows < max(8, rows / 16) if rows > 4 else size in (rows, 4, most)
    assert len(sizes) <= 36 + 16 * max(0, most.bit_length() - 8)


def test_the_first_rungs() -> None:
    assert ladder_sizes(40) == (1, 2, 4, 8, 16, 24, 32, 40)
    assert ladder_sizes(6) == (1, 2, 4, 6)
    assert ladder_sizes(256)[-3:] == (240, 248, 256)
    assert ladder_sizes(512)[-3:] == (480, 496, 512)


class Counting:
    """A step of any size: one is added to its rows, and to a count of the rows that were run."""

    def __init__(self) -> None:
        self.rows = torch.zeros(64, dtype=torch.int64)
        self.launched = 0

    def step(self, size: int) -> Callable[[], None]:
        def work() -> None:
            self.launched += 1
            self.rows[:size].add_(1)

        return work

    def run(self, ladder: GraphLadder, rows: int) -> None:
        size = ladder.size_for(rows)
        ladder.run(size, self.step(size))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=40), st.sampled_from([0, 3, 10, 1000]), st.integers(0, 12))
def test_every_step_is_run_exactly_once_whatever_becomes_of_the_captures(
    batches: list[int], budget: int, fails: int
) -> None:
    device, counting, attempts = StandIn(used=5), Counting(), []

    def out_of_memory(captured: int) -> bool:
        attempts.append(captured)
        return len(attempts) % 3 == 2 and len(attempts) <= fails

    device.capture_fails, device.graph_bytes = out_of_memory, 1
    ladder = GraphLadder(device, ladder_sizes(32), budget)
    expected = torch.zeros_like(counting.rows)
    for rows in batches:
        expected[: ladder.size_for(rows)] += 1
        counting.run(ladder, rows)
        assert torch.equal(counting.rows, expected)
    assert len(ladder.captured) <= max(budget, 1)  # what the first takes is not known before
    assert ladder.taken_bytes == len(ladder.captured)
    assert set(ladder.captured) <= set(ladder.sizes) or ladder.captured == ladder.sizes


def test_a_size_is_captured_once_and_then_replayed() -> None:
    device, counting = StandIn(), Counting()
    lines: list[tuple[str, int, int]] = []
    ladder = GraphLadder(device, (1, 2, 4), GIB, lambda *line: lines.append(line))
    for _ in range(5):
        counting.run(ladder, 3)
    assert ladder.captured == (4,)
    assert [graph.replays for graph in device.graphs] == [4]
    assert counting.launched == 2  # the first step, and its capture
    assert lines == [("capturing decode steps", 1, 3)]
    counting.run(ladder, 5)  # larger than any
    assert ladder.captured == (4,)
    assert counting.rows[:6].tolist() == [6, 6, 6, 6, 1, 0]
    assert ladder.notes == []


def test_captures_end_with_the_budget_and_larger_graphs_serve_smaller_batches() -> None:
    device, counting = StandIn(), Counting()
    device.graph_bytes = 3 * 2**20
    ladder = GraphLadder(device, (1, 2, 4, 8), 7 * 2**20)
    for rows in (8, 2, 1, 1):
        counting.run(ladder, rows)
    assert ladder.captured == ladder.sizes == (2, 8)
    assert ladder.notes == ["graph memory is used up (6 of 7 MiB): decode steps run in batches of 2, 8"]
    assert [ladder.size_for(rows) for rows in (1, 2, 3, 8, 9)] == [2, 2, 8, 8, 9]
    assert counting.rows[0] == 4
    assert ladder.free() == 2
    assert ladder.sizes == (1, 2, 4, 8)


def test_out_of_memory_frees_all_graphs_and_halves_the_ladder() -> None:
    device, counting = StandIn(), Counting()
    ladder = GraphLadder(device, ladder_sizes(16), GIB)
    counting.run(ladder, 1)
    device.capture_fails = lambda captured: True
    counting.run(ladder, 16)
    assert ladder.captured == ()
    assert ladder.sizes == (1, 4, 16)
    counting.run(ladder, 3)
    assert ladder.sizes == (1, 16)
    device.capture_fails = lambda captured: False
    counting.run(ladder, 9)
    assert ladder.captured == (16,)
    device.capture_fails = lambda captured: True
    counting.run(ladder, 1)
    assert ladder.sizes == (16,)
    counting.run(ladder, 1)
    assert ladder.sizes == ()
    assert ladder.notes[-1] == "out of memory capturing a decode step of 16 rows (out of memory): no more graphs"
    assert ladder.size_for(7) == 7
    counting.run(ladder, 7)
    assert counting.rows[0] == 7


def test_a_step_that_cannot_be_captured_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    device, x = StandIn(), torch.zeros(1)
    ladder = GraphLadder(device, (1, 2), GIB)
    for _ in range(3):
        size = ladder.size_for(1)
        ladder.run(size, lambda: x.add_(x.item() + 1))
    assert x.item() == 7
    assert len(ladder.notes) == 1
    assert "not permitted when stream is capturing" in ladder.notes[0]
    assert "decode steps run without graphs" in caplog.text


def test_int8_keys_and_values_in_graphs(tiny_llama: Path) -> None:
    """They are memory that graphs write to, like any other."""
    config = EngineConfig(model=str(tiny_llama), **settings_of(depth=1, kv_cache_dtype="int8"))
    prompts, found = [[5, 6, 7], [8] * 9, [9, 10] * 8], []
    for engine in (stand_in_engine(config), LLMEngine(config)):
        with engine:
            outputs = engine.generate(prompts, temperature=0.0, max_tokens=14, ignore_eos=True)
            found.append([output.outputs[0].token_ids for output in outputs])
    assert found[0] == found[1]
