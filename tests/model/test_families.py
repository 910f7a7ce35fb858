"""config.json read: what is taken from it, what an absent field means, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
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
    mixed = read(tmp_path, QWEN2, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2})
    assert mixed.layer_groups == (LayerGroup(2), LayerGroup(2, 8))
    assert mixed.layer_places == ((0, 0), (0, 1), (1, 0), (1, 1))


GEMMA2 = {"architectures": ["Gemma2ForCausalLM"]}
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"]}
SMALL2, SMALL3 = {**GEMMA2, "num_key_value_heads": 2}, {**GEMMA3, "num_key_value_heads": 2}
EYES = {"architectures": ["Gemma3ForConditionalGeneration"]}
LEGACY_ROPE = {"rope_theta": 2e6, "rope_local_base_freq": 5e3, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}


@pytest.mark.parametrize(
    "given",
    [
        GEMMA2,
        {**GEMMA2, "num_hidden_layers": 3, "sliding_window": 7, "final_logit_softcapping": None},
        {**GEMMA2, "attn_logit_softcapping": None, "rope_theta": 5e4, "query_pre_attn_scalar": 144},
        {**GEMMA2, "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
        GEMMA3,
        {**GEMMA3, **LEGACY_ROPE, "sliding_window_pattern": 3, "sliding_window": 512},
        {**GEMMA3, "num_hidden_layers": 34, "final_logit_softcapping": 20.0, "hidden_size": 2560, "head_dim": 128},
        {**GEMMA3, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e5}}},
        {**GEMMA3, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}},
    ],
)
def test_absent_fields_of_gemma_mean_what_transformers_takes_them_to_mean(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    import transformers

    (tmp_path / "config.json").write_text(json.dumps(given))
    config = read_model_config(tmp_path)
    third = given["architectures"] == GEMMA3["architectures"]
    kind = transformers.Gemma3TextConfig if third else transformers.Gemma2Config
    truth = kind(**json.loads(json.dumps({name: value for name, value in given.items() if name != "architectures"})))
    ropes = truth.rope_parameters if third else {"full_attention": truth.rope_parameters}
    assert config == ModelConfig(
        architecture=given["architectures"][0],
        vocab_size=truth.vocab_size,
        hidden_size=truth.hidden_size,
        intermediate_size=truth.intermediate_size,
        num_layers=truth.num_hidden_layers,
        num_heads=truth.num_attention_heads,
        num_kv_heads=truth.num_key_value_heads,
        head_dim=truth.head_dim,
        norm_eps=truth.rms_norm_eps,
        max_positions=truth.max_position_embeddings,
        activation="gelu_and_mul",
        rope=config.rope,
        local_rope=config.local_rope,
        windows=tuple(truth.sliding_window if name.startswith("sliding") else None for name in truth.layer_types),
        tie_word_embeddings=True,
        qk_norm=third,
        post_norms=True,
        norm_offset=1.0,
        embedding_scale=truth.hidden_size**0.5,
        attention_scale=truth.query_pre_attn_scalar**-0.5,
        attention_softcap=truth.attn_logit_softcapping or 0.0,
        logit_softcap=truth.final_logit_softcapping or 0.0,
    )
    ours = {"full_attention": config.rope, "sliding_attention": config.local_rope}
    assert (config.local_rope is not None) == third
    for name, rope in ropes.items():
        found = ours[name]
        assert found is not None
        assert (found.kind, found.theta) == (rope["rope_type"], rope["rope_theta"])
        assert found.factor == rope.get("factor", 1.0)


def test_gemma_3_with_vision_is_its_text_part(tmp_path: Path) -> None:
    text = {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024, "torch_dtype": "float32"}
    eyes = {**EYES, "torch_dtype": "bfloat16", "vision_config": {}}

    def config(values: dict[str, Any]) -> ModelConfig:
        (tmp_path / "config.json").write_text(json.dumps(values))
        return read_model_config(tmp_path)

    whole = config({**eyes, "text_config": text})
    alone = config({**GEMMA3, **text})
    assert whole == replace(alone, architecture="Gemma3ForConditionalGeneration", dtype="bfloat16")
    assert not config({**eyes, "text_config": text, "tie_word_embeddings": False}).tie_word_embeddings


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
        ({**SMALL2, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({**SMALL2, "sliding_window": None}, "sliding_window"),
        ({**SMALL2, "sliding_window": None, "layer_types": ["sliding_attention"] * 4}, "layer_types"),
        ({**SMALL2, "layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({**SMALL2, "attn_logit_softcapping": 0}, "attn_logit_softcapping"),
        ({**SMALL2, "final_logit_softcapping": "30"}, "final_logit_softcapping"),
        ({**SMALL2, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
        ({**SMALL2, "hidden_activation": "gelu"}, "hidden_activation"),
        ({**SMALL2, "rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters"),
        ({**SMALL3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({**SMALL3, "sliding_window_pattern": 0}, "sliding_window_pattern"),
        ({**SMALL3, "rope_parameters": {"rope_type": "default"}}, "rope_parameters.rope_type"),
        ({**SMALL3, "rope_parameters": {"full_attention": "linear"}}, "rope_parameters.full_attention"),
        (
            {**SMALL3, "rope_parameters": {"sliding_attention": {"rope_type": "longrope"}}},
            "rope_parameters.sliding_attention.rope_type",
        ),
        ({**SMALL3, "rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor"),
        ({**SMALL3, "rope_local_base_freq": 0}, "rope_local_base_freq"),
        ({**EYES, "text_config": [1]}, "text_config"),
        ({**EYES, "text_config": {"vocab_size": 0}}, "text_config.vocab_size"),
        ({**EYES, "torch_dtype": "int8"}, "torch_dtype"),
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
