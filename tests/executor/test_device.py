from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.config import EngineConfig
from octavo.errors import ConfigError
from octavo.executor import device
from octavo.executor.device import resolved


def machine(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cuda: str | None = "13.0",
    gpu: bool = True,
    triton: bool = True,
    capability: tuple[int, int] = (9, 0),
    compiler: str | None = "gcc",
):
    """One with these things."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: name if name == compiler else None)
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
        ({"kv_cache_dtype": "int8"}, "cuda"),
        ({"linear_kind": "panels"}, "cpu"),
    ],
)
def test_with_a_gpu_auto_takes_it_unless_a_cpu_is_meant(
    monkeypatch, tiny_llama: Path, fields: dict[str, Any], where: str
) -> None:
    machine(monkeypatch)
    made = resolved(EngineConfig(**fields), tiny_llama)
    assert (made.device, made.depth) == (where, int(where == "cuda"))
    assert resolved(made, tiny_llama) == made
    for depth in (0, 1):
        assert resolved(EngineConfig(depth=depth, **fields), tiny_llama).depth == depth


@pytest.mark.parametrize(
    "settings", [{"quantization_config": {"quant_method": "gptq"}}, {"octavo": {"quantization": "int8"}}]
)
def test_weights_in_few_bits_are_for_a_cpu(monkeypatch, tiny_llama: Path, tmp_path: Path, settings: dict) -> None:
    machine(monkeypatch)
    written = json.loads((tiny_llama / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | settings))
    assert resolved(EngineConfig(), tmp_path).device == "cpu"
    assert resolved(EngineConfig(device="cuda"), tmp_path).device == "cuda"  # refused when it is loaded


@pytest.mark.parametrize(
    ("has", "says"),
    [
        ({"cuda": None, "gpu": False}, r"PyTorch .* is built without CUDA: install"),
        ({"gpu": False}, r"PyTorch .* \(CUDA 13\.0\) sees no GPU: check nvidia-smi"),
        ({"triton": False}, r"Triton is not installed: pip install 'octavo\[gpu\]'"),
        ({"capability": (7, 5)}, r"Tesla T4 has compute capability 7\.5, and the kernels need 8\.0"),
        ({"compiler": None}, r"Triton finds no C compiler .*: install gcc, or set CC"),
    ],
)
def test_without_one_auto_is_the_cpu_and_asking_for_it_an_error(
    monkeypatch, tiny_llama: Path, has: dict[str, Any], says: str
) -> None:
    machine(monkeypatch, **has)
    made = resolved(EngineConfig(), tiny_llama)
    assert (made.device, made.depth) == ("cpu", 0)
    with pytest.raises(ConfigError, match="device='cuda' but " + says):
        resolved(EngineConfig(device="cuda"), tiny_llama)
    with pytest.raises(ConfigError, match="kernels='triton' but " + says):
        resolved(EngineConfig(kernels="triton"), tiny_llama)
