"""Graphs on a real device: what they replay, and what happens when one cannot be captured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from octavo.executor.gpu.accelerator import CudaAccelerator
from octavo.executor.gpu.graphs import GraphLadder, ladder_sizes

GIB = 2**30


@pytest.fixture
def device() -> CudaAccelerator:
    return CudaAccelerator()


class Products:
    """A step with temporary memory of its own: rows times a matrix, added to what is there."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.rows = torch.randn(64, 256, device="cuda")
        self.weight = torch.randn(256, 256, device="cuda")
        self.sums = torch.zeros(64, 256, device="cuda")

    def step(self, size: int) -> Callable[[], None]:
        return lambda: self.sums[:size].add_((self.rows[:size] * 2) @ self.weight).relu_()


def test_replays_do_what_the_steps_did(device: CudaAccelerator) -> None:
    products, plain = Products(), Products()
    ladder = GraphLadder(device, ladder_sizes(64), GIB)
    for rows in (3, 64, 7, 3, 64, 30, 7, 3, 3, 64):
        size = ladder.size_for(rows)
        products.rows[:size] += 0.125  # what a graph reads changes from step to step
        plain.rows[:size] += 0.125
        ladder.run(size, products.step(size))
        plain.step(size)()
        torch.testing.assert_close(products.sums, plain.sums, rtol=1e-4, atol=1e-3)
    assert ladder.captured == (4, 8, 32, 64)
    assert ladder.notes == []
    assert ladder.free() == 4
    ladder.run(4, products.step(4))
    assert ladder.captured == (4,)


def test_out_of_memory_in_a_capture_leaves_a_smaller_ladder(device: CudaAccelerator) -> None:
    products = Products()
    ladder = GraphLadder(device, (1, 2, 4, 8), GIB)
    ladder.run(2, products.step(2))

    def greedy() -> None:
        products.step(8)()
        if torch.cuda.is_current_stream_capturing():
            torch.empty(2 * device.description.total_bytes, dtype=torch.uint8, device="cuda")

    stream = torch.cuda.current_stream()
    ladder.run(8, greedy)
    assert torch.cuda.current_stream() == stream
    assert ladder.sizes == (2, 8)
    assert ladder.captured == ()
    for _ in range(2):
        ladder.run(8, products.step(8))
    assert ladder.captured == (8,)
    plain = Products()
    for size in (2, 8, 8, 8):
        plain.step(size)()
    torch.testing.assert_close(products.sums, plain.sums, rtol=1e-4, atol=1e-3)


def test_what_cannot_be_captured_runs_without(device: CudaAccelerator) -> None:
    ladder, x = GraphLadder(device, (1, 2), GIB), torch.zeros(1, device="cuda")
    stream = torch.cuda.current_stream()
    for _ in range(3):
        ladder.run(ladder.size_for(1), lambda: x.add_(x.item() + 1))
    assert x.item() == 7
    assert ladder.sizes == ()
    assert "could not be captured" in ladder.notes[0]
    assert torch.cuda.current_stream() == stream
    other, products = GraphLadder(device, (1, 2), GIB), Products()
    for _ in range(2):
        other.run(2, products.step(2))
    assert other.captured == (2,)
