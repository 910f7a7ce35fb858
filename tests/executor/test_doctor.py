import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from executor.gpu.stand_in import StandIn

from octavo.cli.doctor import _tables, as_data
from octavo.config import EngineConfig
from octavo.errors import ConfigError, WeightsError
from octavo.executor.doctor import inspect
from octavo.executor.factory import create_executor


def test_the_report_is_what_the_executor_then_does(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), kernels="reference", max_num_seqs=4, block_size=8, num_threads=1)
    report = inspect(config)
    made = create_executor(config, tiny_llama)
    assert report.folder == tiny_llama
    assert (report.dtype, report.backend.name, report.threads) == ("float32", "reference", 1)
    assert report.dtype_reason == "the checkpoint is float32, and this processor computes in it"
    assert report.memory.num_blocks == made.facts.num_blocks == 4 * 512 // 8
    assert report.memory.page_bytes == made.facts.page_bytes
    assert report.memory.max_model_len == made.facts.max_model_len == 512
    assert report.memory.concurrent_at_full_context == report.memory.concurrent(512) == 4
    assert report.eos_token_ids == made.facts.eos_token_ids
    assert dict(report.versions)["torch"] == torch.__version__
    assert report.machine.cores >= 1


def test_keys_and_values_in_int8_leave_room_for_more_blocks(tiny_llama: Path) -> None:
    settings = {"model": str(tiny_llama), "dtype": "bfloat16", "kernels": "reference", "max_num_seqs": 4}
    plain, report = (inspect(EngineConfig(**settings, kv_cache_dtype=kind)) for kind in ("auto", "int8"))
    assert plain.kv_dtype == "bfloat16"
    # heads of 16: 16 bytes and a scale of 4 in place of 32
    assert report.kv_dtype == "int8, a float32 scale for each token and head: 1.60x the blocks of bfloat16"
    assert report.memory.page_bytes * 8 == plain.memory.page_bytes * 5
    facts = create_executor(EngineConfig(**settings, kv_cache_dtype="int8"), tiny_llama).facts
    assert facts.page_bytes == report.memory.page_bytes
    assert f"KV memory in {report.kv_dtype}" in facts.notes


def test_the_weights_are_counted_without_reading_them(tiny_llama: Path) -> None:
    stored = (tiny_llama / "model.safetensors").stat().st_size
    weights = inspect(EngineConfig(model=str(tiny_llama))).memory.weights_bytes
    assert stored * 0.95 < weights < stored * 1.5
    half = inspect(EngineConfig(model=str(tiny_llama), dtype="bfloat16"))
    assert half.memory.weights_bytes == weights // 2
    assert half.dtype == "bfloat16"


def test_a_checkpoint_that_does_not_name_its_dtype(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    for path in checkpoint("llama", num_hidden_layers=1).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in fields.items() if name not in ("dtype", "torch_dtype")})
    )
    assert inspect(EngineConfig(model=str(tmp_path))).dtype == "float32"


def test_what_cannot_be_served_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len=600 exceeds"):
        inspect(EngineConfig(model=str(tiny_llama), max_model_len=600))
    for path in tiny_llama.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        inspect(EngineConfig(model=str(tmp_path)))


def test_a_gpu_and_what_a_model_would_get_there(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), device="cuda", max_num_seqs=4, block_size=8, swap_space=0.01)
    report = inspect(config, accelerator=StandIn(total=10 * 2**30, used=2**30))
    assert report.gpu is not None
    assert (report.gpu.description.capability, report.gpu.memory.free) == ((9, 0), 9 * 2**30)
    assert report.backend.name == "triton"
    assert report.dtype_reason == "the checkpoint is float32, and this GPU computes in it"
    assert report.memory.num_blocks == 4 * 512 // 8
    assert report.memory.num_host_blocks == int(0.01 * 2**30) // report.memory.page_bytes
    assert 2**30 < report.memory.working_bytes < 1.1 * 2**30
    assert report.linears == ()
    data = json.loads(json.dumps(as_data(report), default=str))
    assert data["gpu"]["description"]["name"] == "stand-in"
    titles = [str(table.title) for table in _tables(report, config)]
    assert titles == ["Machine", "GPU", "Model", "Memory plan"]
    full = EngineConfig(model=str(tiny_llama), device="cuda")
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0\.9 allows 9\.0 GiB of the GPU's 10\.0 GiB"):
        inspect(full, accelerator=StandIn(total=10 * 2**30, used=10 * 2**30 - 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="device='cuda' but PyTorch"):
        inspect(EngineConfig(model=str(tiny_llama), device="cuda"))
    assert inspect(EngineConfig(model=str(tiny_llama))).gpu is None
