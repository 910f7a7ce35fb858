from __future__ import annotations

import pytest
import torch
from executor.gpu.stand_in import StandIn

from octavo.executor.gpu.readings import PlainReading, PlainResults
from octavo.executor.gpu.results import Outbox
from octavo.executor.sampler import NO_TOKEN_LEFT, NOT_FINITE
from octavo.plan import ChunkResult, Sample


def test_tensors_arrive_late_and_whole() -> None:
    """The stand-in hands out poison to who reads before the copy's event."""
    device = StandIn()
    outbox = Outbox(device)
    tensors = [
        torch.arange(6).view(2, 3), torch.tensor([0.5, float("-inf")]), torch.tensor([True, False]),
        torch.tensor([], dtype=torch.int64), torch.tensor([7], dtype=torch.int32),
    ]  # fmt: skip
    first, second = outbox.post(tensors), outbox.post([torch.arange(5000)])
    assert first.open() == [tensor.tolist() for tensor in tensors]
    third = outbox.post([torch.arange(3)])  # in memory that the first has given back
    assert second.open() == [[*range(5000)]]
    assert third.open() == [[0, 1, 2]]


def test_pinned_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device, made = StandIn(), []
    pinned = device.pinned
    monkeypatch.setattr(device, "pinned", lambda *args: made.append(args) or pinned(*args))
    outbox = Outbox(device)
    flying = [outbox.post([torch.arange(9)])]
    for _ in range(20):
        flying.append(outbox.post([torch.arange(9)]))
        assert flying.pop(0).open() == [[*range(9)]]
    assert len(made) == 2


def test_plain_results() -> None:
    plain = PlainResults()
    reading = PlainReading(plain, 3)
    tokens = [[5, 6, 5], [0, 0, 0]]
    assert reading.results([tokens]) == tuple(ChunkResult((Sample(token),)) for token in (5, 6, 5))
    assert len(plain) == 2
    failed = reading.results([[[5, 6, 5], [0, 1, 2]]])
    assert failed == (ChunkResult((Sample(5),)), ChunkResult(error=NOT_FINITE), ChunkResult(error=NO_TOKEN_LEFT))
