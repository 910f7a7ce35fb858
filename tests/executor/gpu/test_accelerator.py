"""The stand-in itself: what it is trusted to notice, it notices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from executor.gpu.stand_in import StandIn, StandInOutOfMemoryError

from octavo import kernels
from octavo.executor.gpu.accelerator import Accelerator, CudaAccelerator

REFERENCE = kernels.load("reference")


def test_it_is_an_accelerator() -> None:
    device: Accelerator = StandIn(total=100, used=30)
    assert device.memory().free == 70
    assert device.memory().used == 30
    assert device.is_out_of_memory(StandInOutOfMemoryError())
    assert not device.is_out_of_memory(RuntimeError())


def test_cuda_says_in_many_ways_that_memory_ran_out() -> None:
    device = object.__new__(CudaAccelerator)  # needs no GPU to judge an error
    hidden = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    hidden.__context__ = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        hidden,
    ):
        assert device.is_out_of_memory(error)
    for other in (RuntimeError("CUDA error: an illegal memory access was encountered"), ValueError("out of memory")):
        assert not device.is_out_of_memory(other)


@pytest.mark.parametrize("is_believed_in", [True, False])
def test_a_capture_that_cannot_be_ended_is_taken_back(monkeypatch: pytest.MonkeyPatch, is_believed_in: bool) -> None:
    """PyTorch before 2.12 is told that it is over; later versions know."""
    told: list[tuple[str, int, object]] = []

    @contextmanager
    def capture(graph: object, pool: object = None, **settings: object) -> Iterator[None]:
        yield
        if pool is not None:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def end(device: int, pool: object) -> None:
        if not is_believed_in:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        told.append(("ended", device, pool))

    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: told.append(("captured", device.index, None)))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    release = lambda device, pool: told.append(("released", device, pool))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    device = object.__new__(CudaAccelerator)
    device.device, device._abandoned = torch.device("cuda", 1), []
    device._capture_stream = None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="previous error during capture"):
        device.capture(lambda: None, (0, 7))
    right = [("ended", 1, (0, 7)), ("released", 1, (0, 7)), ("captured", 1, None)]
    assert told == (right if is_believed_in else [])
    assert len(device._abandoned) == is_believed_in


@pytest.mark.parametrize("is_main", [True, False])
def test_what_is_copied_to_the_host_comes_when_it_is_waited_for(is_main: bool) -> None:
    device = StandIn()
    stream = device.main if is_main else device.side_stream()
    host, source = device.pinned((3,), torch.int64), torch.tensor([1, 2, 3])
    stream.copy(host, source)
    event = stream.record()
    assert not {1, 2, 3} & set(host.tolist())
    assert not event.query()
    event.synchronize()
    assert host.tolist() == [1, 2, 3]
    assert event.query()


def test_a_side_stream_reads_late_and_the_main_stream_in_order() -> None:
    device = StandIn()
    side, cache = device.side_stream(), torch.ones(2, dtype=torch.int64)
    late, ordered = device.pinned((2,), torch.int64), device.pinned((2,), torch.int64)
    device.main.copy(ordered, cache)
    side.wait(device.main.record())
    side.copy(late, cache)
    cache.fill_(7)  # without having waited for the side stream
    device.synchronize()
    assert ordered.tolist() == [1, 1]
    assert late.tolist() == [7, 7]


def test_the_main_stream_waits_by_wait() -> None:
    device = StandIn()
    side, cache = device.side_stream(), torch.zeros(2, dtype=torch.int64)
    host = device.pinned((2,), torch.int64)
    host.fill_(5)
    side.copy(cache, host)
    assert cache.tolist() != [5, 5]
    device.main.wait(side.record())
    assert cache.tolist() == [5, 5]


def test_copies_of_one_stream_keep_their_order() -> None:
    device = StandIn()
    side, cache = device.side_stream(), torch.tensor([[1, 1], [2, 2]])
    host = device.pinned((2, 2), torch.int64)
    side.copy(host[0], cache[0])
    side.copy(cache[0], cache[1])  # reads nothing, and must not spoil what the copy above reads
    side.copy(cache[1], host[0])
    device.synchronize()
    assert host[0].tolist() == [1, 1]
    assert cache.tolist() == [[2, 2], [1, 1]]


def test_a_side_stream_must_wait_for_what_the_main_one_has_launched() -> None:
    device = StandIn()
    side, x = device.side_stream(), torch.ones(2, 4)
    device.kernels(REFERENCE).rms_norm(x, torch.ones(4), 1e-6, x)
    with pytest.raises(AssertionError, match="without waiting for the main stream"):
        side.copy(device.pinned((2, 4), torch.float32), x)
    side.wait(device.main.record())
    side.copy(device.pinned((2, 4), torch.float32), x)


def test_pinned_memory_must_be_left_alone_while_it_is_read() -> None:
    device = StandIn()
    host, target = device.pinned((2,), torch.int64), torch.zeros(2, dtype=torch.int64)
    host.fill_(1)
    device.main.copy(target, host)
    device.synchronize()
    host.fill_(2)  # it has been read
    device.main.copy(target, host)
    host.fill_(3)  # it may not have been
    with pytest.raises(AssertionError, match="written to while"):
        device.synchronize()


def test_a_graph_repeats_operations_and_runs_no_python() -> None:
    device, seen = StandIn(), []
    launch = device.kernels(REFERENCE)
    count, x, out = torch.zeros(1, dtype=torch.int64), torch.ones(2, 4), torch.zeros(2, 4)

    def work() -> None:
        seen.append(len(seen))
        count.add_(1 + seen[-1])  # the number is the capture's, for ever
        doubled = x * 2
        launch.silu_and_mul(doubled[:1], out[:1, :2])
        out[1].copy_(doubled[1])

    graph = device.capture(work, device.new_pool())
    assert not count.any()
    assert not out.any()
    for times in (1, 2, 3):
        x.fill_(times)
        graph.replay()
        assert count.tolist() == [times]
        assert out[1].tolist() == [2.0 * times] * 4
        assert torch.equal(out[0, :2], torch.nn.functional.silu(2 * x[0, :2]) * 2 * x[0, 2:])
    assert seen == [0]


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x + torch.tensor([1.0])])
def test_a_graph_cannot_wait_nor_bring_anything_from_the_host(wait) -> None:
    device, x = StandIn(), torch.ones(3)

    def work() -> None:
        x.add_(1)
        wait(x)

    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        device.capture(work, device.new_pool())
    assert x.tolist() == [1, 1, 1]
    assert not device.graphs


def test_a_capture_leaves_what_kernels_reach_through_other_objects_as_it_was() -> None:
    device = StandIn()
    launch = device.kernels(REFERENCE)
    layout = kernels.KvLayout(1, 1, 4, 2, torch.int8)
    kv = layout.view(layout.allocate(3))
    rows, slots = torch.ones(1, 1, 4), torch.tensor([3])
    graph = device.capture(lambda: launch.write_kv(rows, rows, kv, 0, slots), None)
    assert not kv.values.any()
    graph.replay()
    assert kv.values[1, 0, :, 0, 1].tolist() == [[127] * 4] * 2


def test_memory_runs_out_where_a_test_says() -> None:
    device = StandIn()
    launch = device.kernels(REFERENCE)
    device.most_rows, device.capture_fails = 2, lambda captured: captured == 1
    x, weight = torch.ones(3, 4), torch.ones(4)
    launch.add_rms_norm(x[:2], x[:2].clone(), weight, 1e-6, torch.empty(2, 4))
    with pytest.raises(StandInOutOfMemoryError):
        launch.add_rms_norm(x, x.clone(), weight, 1e-6, torch.empty(3, 4))
    device.graph_bytes = 100
    before = device.memory().free
    device.capture(lambda: None, None)
    assert device.memory().free == before - 100
    with pytest.raises(StandInOutOfMemoryError):
        device.capture(lambda: None, None)
