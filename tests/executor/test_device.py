from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.executor import device
from octavo.executor.device import resolved


def machine(monkeypatch: pytest.MonkeyPatch, *, cuda: str | None = "13.0", gpu: bool = True, triton: bool = True):
    """One with these things."""
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = importlib.util.find_spec
    monkeypatch.setattr(device, "find_spec", lambda name: found("json") if triton else None)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({}, "cuda"),
        ({"device": "cuda"}, "cuda"),
        ({"kernels": "triton"}, "cuda"),
        ({"device": "cpu"}, "cpu"),
        ({"kernels": "cpu"}, "cpu"),
        ({"kernels": "reference"}, "cpu"),
        ({"quantization": "int8"}, "cpu"),
        ({"kv_cache_dtype": "int8"}, "cpu"),
    ],
)
def test_with_a_gpu_auto_takes_it_unless_a_cpu_is_meant(monkeypatch, fields: dict[str, Any], where: str) -> None:
    machine(monkeypatch)
    made = resolved(EngineConfig(**fields))
    assert (made.device, made.depth) == (where, int(where == "cuda"))
    assert resolved(made) == made
    for depth in (0, 1):
        assert resolved(EngineConfig(depth=depth, **fields)).depth == depth


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({"cuda": None, "gpu": False}, r"PyTorch .* is built without CUDA: install"),
        ({"gpu": False}, r"PyTorch .* \(CUDA 13\.0\) sees no GPU: check nvidia-smi"),
        ({"triton": False}, r"Triton is not installed: pip install 'octavo\[gpu\]'"),
    ],
)
def test_without_one_auto_is_the_cpu_and_asking_for_it_an_error(monkeypatch, has: dict[str, Any], says: str) -> None:
    machine(monkeypatch, **has)
    made = resolved(EngineConfig())
    assert (made.device, made.depth) == ("cpu", 0)
    with pytest.raises(ConfigError, match="device='cuda' but " + says):
        resolved(EngineConfig(device="cuda"))
    with pytest.raises(ConfigError, match="kernels='triton' but " + says):
        resolved(EngineConfig(kernels="triton"))
