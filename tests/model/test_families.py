"""config.json read: what is taken from it, what an absent field means, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import DEFAULTS, FAMILIES

from octavo.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from octavo.model import ModelConfig, read_model_config
from octavo.plan import LayerGroup

BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "vocab_size": 384,
}
MISTRAL = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2}


def read(folder: Path, *parts: dict[str, Any]) -> ModelConfig:
    config: dict[str, Any] = {}
    for part in (BASE, *parts):
        config |= part
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    return read_model_config(folder)


def test_llama(tmp_path: Path) -> None:
    config = read(tmp_path, {"num_key_value_heads": 2, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5})
    assert config == ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=384,
        hidden_size=96,
        intermediate_size=160,
        num_layers=4,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        max_positions=2048,
        windows=(None,) * 4,
        dtype="bfloat16",
    )
    assert (config.q_size, config.kv_size, config.context_length) == (96, 32, 2048)


def test_absent_and_null_fields_mean_what_transformers_takes_them_to_mean(tmp_path: Path) -> None:
    assert read(tmp_path).num_kv_heads == 6
    assert read(tmp_path, {"num_key_value_heads": None}).num_kv_heads == 6
    assert read(tmp_path, {"head_dim": None}).head_dim == 16
    assert read(tmp_path, {"head_dim": 32}).head_dim == 32
    assert not read(tmp_path).tie_word_embeddings
    assert read(tmp_path, MISTRAL).windows == (4096,) * 4
    assert read(tmp_path, MISTRAL, {"sliding_window": None}).windows == (None,) * 4
    assert read(tmp_path, MISTRAL, {"num_attention_heads": 8, "num_key_value_heads": ...}).num_kv_heads == 8
    assert read(tmp_path, QWEN3).head_dim == 128
    assert read(tmp_path, {"dtype": "torch.float16"}).dtype == "float16"
    assert read(tmp_path).dtype is None


def test_biases_and_norms_are_the_familys(tmp_path: Path) -> None:
    def flags(*parts: dict[str, Any]) -> tuple[bool, ...]:
        config = read(tmp_path, *parts)
        return config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm

    assert flags() == (False, False, False, False)
    assert flags({"attention_bias": True}) == (True, True, False, False)
    assert flags({"mlp_bias": True}) == (False, False, True, False)
    assert flags(MISTRAL) == (False, False, False, False)
    assert flags(QWEN2) == (True, False, False, False)
    assert flags(QWEN3) == (False, False, False, True)
    assert flags(QWEN3, {"attention_bias": True}) == (True, True, False, True)


def test_windows_of_qwen(tmp_path: Path) -> None:
    windowed = {"use_sliding_window": True, "sliding_window": 8}
    assert read(tmp_path, QWEN2, {"sliding_window": 8}).windows == (None,) * 4
    assert read(tmp_path, QWEN2, windowed).windows == (None,) * 4  # max_window_layers is 28 where absent
    assert read(tmp_path, QWEN2, windowed, {"max_window_layers": 3}).windows == (None, None, None, 8)
    assert read(tmp_path, QWEN2, windowed, {"sliding_window": None, "max_window_layers": 0}).windows == (None,) * 4
    kinds = ["sliding_attention", "full_attention"] * 2
    assert read(tmp_path, QWEN3, windowed, {"layer_types": kinds}).windows == (8, None, 8, None)


def test_layer_groups(tmp_path: Path) -> None:
    assert read(tmp_path).layer_groups == (LayerGroup(4),)
    assert read(tmp_path, MISTRAL, {"sliding_window": 9}).layer_groups == (LayerGroup(4, 9),)
    mixed = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert read(tmp_path, QWEN2, mixed).layer_groups == (LayerGroup(4),)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 512),
        ({"rope_type": "dynamic", "factor": 2.0}, 1024),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_the_context_that_scaling_gives(tmp_path: Path, scaling: dict[str, Any], expected: int) -> None:
    config = read(tmp_path, {"max_position_embeddings": 512, "rope_parameters": scaling})
    assert config.context_length == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read_back(checkpoint: Callable[..., Path], family: str) -> None:
    config = read_model_config(checkpoint(family))
    assert config.architecture == FAMILIES[family][1]
    assert (config.hidden_size, config.head_dim, config.num_kv_heads) == (96, 16, 2)
    assert config.max_positions == DEFAULTS["max_position_embeddings"]
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures"),
        ({"architectures": []}, "architectures"),
        ({"architectures": ...}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"hidden_size": 97}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": 15}, "head_dim"),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype"),
        ({"dtype": 16}, "dtype"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_scaling": {"type": "longrope", "factor": 4}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_scaling": {"type": "llama3", "factor": 8}}, "rope_scaling.low_freq_factor"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8, "low_freq_factor": 2, "high_freq_factor": 2}},
            "rope_scaling.high_freq_factor",
        ),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters.partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({**QWEN2, "layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window"),
        ({**QWEN2, "use_sliding_window": 1}, "use_sliding_window"),
    ],
)
def test_what_is_not_supported_is_refused_by_file_and_field(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        read(tmp_path, change)
    assert f"{tmp_path / 'config.json'}: {field}" in str(caught.value)


def test_no_config_or_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"config\.json"):
        read_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{'a': 1}")
    with pytest.raises(ModelError, match="not valid JSON"):
        read_model_config(tmp_path)


def test_older_configs_read_the_same(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("llama", dtype="bfloat16")
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    values = json.loads((tmp_path / "config.json").read_text())
    values["torch_dtype"] = values.pop("dtype")
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_model_config(tmp_path) == read_model_config(source)
