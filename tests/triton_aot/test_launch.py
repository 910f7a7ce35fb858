"""The short way to Triton's C launcher hands it what Triton hands it. (The launcher here writes that down.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compiling import AbsentGpu
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from octavo.kernels import KvLayout, triton
from octavo.kernels.triton import launch


class RecordingGpu(AbsentGpu):
    """Loads nothing, and lists what would be launched."""

    def __init__(self) -> None:
        super().__init__(architecture=90)
        self.launches: list[tuple[Any, ...]] = []
        self.utils = self

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return lambda *arguments: self.launches.append(arguments)

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, str, int, int, int]:
        return object(), f"{name} {hash(binary)}", 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448}

    def get_current_device(self) -> int:
        return id(self)  # so that it finds nothing compiled

    def get_current_stream(self, device: int) -> int:
        return 77


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingGpu]:
    before, absent = driver._active, RecordingGpu()
    monkeypatch.setattr(launch, "_COMPILED", {})
    driver.set_active(absent)
    yield absent
    driver._active = before


def norms(rows: int, width: int, dtype: torch.dtype = torch.bfloat16, shift: int = 0) -> Callable[[], object]:
    memory = torch.empty(2 * rows * width + 8, dtype=dtype)
    x, out = (memory[start : start + rows * width].view(rows, width) for start in (shift, rows * width))
    weight = torch.empty(width, dtype=dtype)
    return lambda: triton.rms_norm(x, weight, 1e-5, out)


def rotation() -> Callable[[], object]:
    qkv, layout = torch.empty(4, 8 * 64, dtype=torch.bfloat16), KvLayout(2, 2, 64, 16, torch.bfloat16)
    kv, cos_sin, places = layout.view(layout.allocate(4)), torch.empty(64, 64), torch.zeros(4, dtype=torch.int64)
    return lambda: triton.rotate_and_write(qkv, None, None, 1e-5, cos_sin, places, kv, 1, places, 4, 2)


@pytest.mark.parametrize("made", [norms(3, 512), norms(1, 70, torch.float32), rotation()])
def test_both_ways_launch_the_same(
    made: Callable[[], object], gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda *_, **__: pytest.fail("this was the long way"))
        made()
    long, short = gpu.launches
    # the grid, the stream, the function and its metadata; three places for what hooks want; the arguments
    assert short[3] == 77
    assert short[6:9] == (None, None, None)
    assert [*map(described, short[:6])] == [*map(described, long[:6])]
    assert [*map(described, short[9:])] == [*map(described, long[9:])]


def described(argument: object) -> object:
    if isinstance(argument, torch.Tensor):
        return argument.dtype, argument.data_ptr()
    return argument


def test_what_specialises_differently_is_compiled_apart(gpu: RecordingGpu) -> None:
    """Another dtype; a stride that 16 does not divide; memory that is not aligned; a stride of one."""
    calls = [
        norms(3, 512), norms(5, 1024), norms(3, 512, torch.float16), norms(3, 500), norms(3, 512, shift=1), norms(3, 1)
    ]  # fmt: skip
    for call in (*calls, *calls):
        call()
    functions = [each[4] for each in gpu.launches]
    assert functions[: len(calls)] == functions[len(calls) :]
    assert len(set(functions)) == len(calls)


def test_other_versions_take_the_long_way(gpu: RecordingGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_takes_short_way", False)
    call = norms(3, 512)
    call()
    call()
    assert len(gpu.launches) == 2
    assert not launch._COMPILED
