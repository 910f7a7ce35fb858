"""Families of models as data: the name under ``architectures`` -> how to read its config.json.

The decoder is one and the same; a family says which of its parts the checkpoint has. What an absent field means is
what transformers takes it to mean. To add a family: write its function, put it into :data:`FAMILIES`, and add it to
``tests/checkpoints.py``, so that the differential tests hold it to transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from octavo.errors import UnsupportedModelError
from octavo.hub import CONFIG_FILE, read_json
from octavo.model.config import ModelConfig
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


FAMILIES: dict[str, Callable[[ConfigFile], ModelConfig]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
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
