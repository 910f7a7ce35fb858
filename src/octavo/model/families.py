"""Families of models as data: the name under ``architectures`` -> how to read its config.json.

The decoder is one and the same; a family says which of its parts the checkpoint has. What an absent field means is
what transformers takes it to mean. To add a family: write its function, put it into :data:`FAMILIES`, and add it to
``tests/checkpoints.py``, so that the differential tests hold it to transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError
from octavo.hub import CONFIG_FILE, read_json
from octavo.model.config import ModelConfig, RopeConfig, stored_dtype
from octavo.model.config_file import ConfigFile


def llama(file: ConfigFile) -> ModelConfig:
    """Llama 1, 2, 3.x, SmolLM2, and the many that took their shape."""
    bias = file.flag("attention_bias", False)
    return ModelConfig.read(
        file,
        windows=_windows(file, None),
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=file.flag("mlp_bias", False),
    )


def mistral(file: ConfigFile) -> ModelConfig:
    """Mistral: Llama with a sliding window on every layer (null: none; absent: 4,096)."""
    window = None if file.has("sliding_window") and file.get("sliding_window") is None else _window(file)
    return ModelConfig.read(file, windows=_windows(file, window), num_kv_heads=8)


def qwen2(file: ConfigFile) -> ModelConfig:
    """Qwen2 and 2.5: a bias on query, key and value; the upper layers may be windowed."""
    return ModelConfig.read(file, windows=_upper_windows(file), num_kv_heads=32, qkv_bias=True)


def qwen3(file: ConfigFile) -> ModelConfig:
    """Qwen3: norms on query and key heads, and a head size of its own."""
    bias = file.flag("attention_bias", False)
    return ModelConfig.read(
        file,
        windows=_upper_windows(file),
        num_kv_heads=32,
        head_dim=128,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
    )


_GEMMA: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_GEMMA2 = _GEMMA | {
    "vocab_size": 256_000,
    "max_position_embeddings": 8192,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = _GEMMA | {"vocab_size": 262_208, "max_position_embeddings": 131_072, "rope_theta": 1_000_000.0}


def gemma2(file: ConfigFile) -> ModelConfig:
    """Gemma 2: every other layer windowed, from the first; scores and logits capped."""
    return _gemma(file.filled(_GEMMA2), pattern=2)


def gemma3(file: ConfigFile) -> ModelConfig:
    """Gemma 3's text model: five windowed layers, which rotate by a base of their own, to one that sees all; norms on
    query and key heads instead of capped scores."""
    file = file.filled(_GEMMA3)
    if file.get("attn_logit_softcapping") is not None:
        raise file.refuse("attn_logit_softcapping", "is not supported in Gemma 3: transformers does not apply it")
    rope, local_rope = _gemma3_ropes(file)
    config = _gemma(file, pattern=file.integer("sliding_window_pattern", 6), qk_norm=True, rope=rope)
    return replace(config, local_rope=local_rope)


def gemma3_with_vision(file: ConfigFile) -> ModelConfig:
    """Gemma 3 with eyes: its text part, ``text_config``. Images cannot be given."""
    text = file.nested("text_config")
    if text.get("final_logit_softcapping") is not None:
        raise text.refuse("final_logit_softcapping", "is not supported here: transformers does not apply it")
    above = {name: file.get(name) for name in ("architectures", "tie_word_embeddings") if file.has(name)}
    config = gemma3(ConfigFile(file.path, {**text.values, "tie_word_embeddings": True, **above}, text.prefix))
    return replace(config, dtype=stored_dtype(file) or config.dtype)


FAMILIES: dict[str, Callable[[ConfigFile], ModelConfig]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "Gemma3ForConditionalGeneration": gemma3_with_vision,
}


def read_model_config(folder: Path) -> ModelConfig:
    """The configuration of the model in ``folder``.

    Raises:
        ModelNotFoundError: there is no config.json.
        ModelError: it is not valid JSON.
        UnsupportedModelError: the architecture, or one of its options, is not one that Octavo knows; the message
            names file and field.
    """
    path = folder / CONFIG_FILE
    file = ConfigFile(path, read_json(path))
    names = file.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise file.refuse("architectures", f"must be a list of one name; known: {', '.join(FAMILIES)}")
    if names[0] not in FAMILIES:
        raise UnsupportedModelError(f"{path}: architectures={names!r} is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[names[0]](file)


def _window(file: ConfigFile) -> int:
    return file.integer("sliding_window", 4096)


def _windows(file: ConfigFile, window: int | None) -> tuple[int | None, ...]:
    """The same for every layer; ``layer_types`` must not say otherwise."""
    windows = (window,) * file.integer("num_hidden_layers")
    if file.get("layer_types") is not None and _layer_types(file, window) != windows:
        raise file.refuse(
            "layer_types", f"is not supported in {file.get('architectures')[0]}: its layers are all alike"
        )
    return windows


def _upper_windows(file: ConfigFile) -> tuple[int | None, ...]:
    """Windows on the layers that ``layer_types`` names, or on those from ``max_window_layers`` up."""
    window = _window(file) if file.flag("use_sliding_window", False) else None
    if file.has("sliding_window") and file.get("sliding_window") is None:
        window = None
    if file.get("layer_types") is not None:
        return _layer_types(file, window)
    first = file.integer("max_window_layers", 28, low=0)
    return tuple(window if layer >= first else None for layer in range(file.integer("num_hidden_layers")))


def _layer_types(file: ConfigFile, window: int | None) -> tuple[int | None, ...]:
    kinds = {"full_attention": None, "sliding_attention": window}
    names = file.get("layer_types")
    if not isinstance(names, list) or len(names) != file.integer("num_hidden_layers"):
        raise file.refuse("layer_types", "must be a list with one entry for each of num_hidden_layers")
    if any(name not in kinds for name in names):
        raise file.refuse("layer_types", f"holds a kind that is not supported: use {' or '.join(kinds)}")
    if window is None and "sliding_attention" in names:
        raise file.refuse(
            "layer_types", "names windowed layers, but use_sliding_window or sliding_window says there are none"
        )
    return tuple(kinds[name] for name in names)


def _gemma(file: ConfigFile, *, pattern: int, qk_norm: bool = False, rope: RopeConfig | None = None) -> ModelConfig:
    """What Gemma 2 and 3 share; without ``layer_types`` one layer in ``pattern`` sees all, the others are windowed."""
    if file.get("use_bidirectional_attention"):
        raise file.refuse("use_bidirectional_attention", "is not supported: text is generated forwards")
    window = None if file.get("sliding_window") is None else _window(file)
    layers = file.integer("num_hidden_layers")
    if file.get("layer_types") is not None:
        windows = _layer_types(file, window)
    else:
        windows = tuple(None if layer % pattern == pattern - 1 else window for layer in range(layers))
        if window is None and pattern > 1:
            raise file.refuse("sliding_window", "must be an integer: this family has windowed layers")
    bias = file.flag("attention_bias", False)
    config = ModelConfig.read(
        file,
        windows=windows,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=qk_norm,
        rope=rope,
        activation_field="hidden_activation",
    )
    return replace(
        config,
        post_norms=True,
        norm_offset=1.0,
        embedding_scale=config.hidden_size**0.5,
        attention_scale=file.number("query_pre_attn_scalar", above=0) ** -0.5,
        attention_softcap=_cap(file, "attn_logit_softcapping"),
        logit_softcap=_cap(file, "final_logit_softcapping"),
    )


def _cap(file: ConfigFile, name: str) -> float:
    return 0.0 if file.get(name) is None else file.number(name, above=0)


def _gemma3_ropes(file: ConfigFile) -> tuple[RopeConfig, RopeConfig]:
    """Of the layers that see all, and of the windowed ones: ``rope_parameters`` holds both (transformers 5); before
    that ``rope_scaling`` spoke of the former alone."""
    kinds = file.nested("rope_parameters")
    strange = [name for name in kinds.values if name not in ("full_attention", "sliding_attention")]
    if strange:
        raise kinds.refuse(strange[0], "is not supported: give full_attention and sliding_attention, an object each")
    full, local = kinds.nested("full_attention"), kinds.nested("sliding_attention")
    scaling = file.nested("rope_scaling")
    if scaling.values:
        full = ConfigFile(file.path, {**full.values, **scaling.values}, scaling.prefix)
    longest = file.integer("max_position_embeddings")
    return (
        RopeConfig.scaled(file, full, file.number("rope_theta", above=0), longest),
        RopeConfig.scaled(file, local, file.number("rope_local_base_freq", 10_000.0, above=0), longest),
    )
