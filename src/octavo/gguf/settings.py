"""A GGUF file's metadata as the config.json that the same model has in Hugging Face layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from octavo.errors import UnsupportedModelError
from octavo.gguf.header import Header

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
"""``general.architecture`` -> the name under ``architectures``. (Mistral's models are "llama" to llama.cpp.)"""

_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "</s>", "<eos>")
"""Control tokens that end a text or a turn whatever the metadata names; llama.cpp stops at them too."""
_CONTROL = 3  # a token's type
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def model_settings(header: Header) -> dict[str, Any]:
    """The object of config.json.

    Raises:
        UnsupportedModelError: the architecture, or one of its options, is not one that Octavo knows.
    """
    if header.architecture not in ARCHITECTURES:
        raise header.refuse("general.architecture", f"is not supported; known: {', '.join(ARCHITECTURES)}")
    if header.get("expert_count", 0):
        raise header.refuse("expert_count", "is not supported: mixtures of experts are not")
    heads, hidden = header.need("attention.head_count"), header.need("embedding_length")
    head_dim = header.get("attention.key_length", hidden // heads)
    if header.get("attention.value_length", head_dim) != head_dim:
        raise header.refuse("attention.value_length", "is not supported: keys and values must be of one size")
    if header.get("rope.dimension_count", head_dim) != head_dim:
        raise header.refuse("rope.dimension_count", "is not supported: whole heads must be rotated")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModelError(f"{header.path} has no tensor 'token_embd.weight': it is not a language model")
    dtype = _DTYPES.get(embedding.kind, "bfloat16")
    settings: dict[str, Any] = {
        "architectures": [ARCHITECTURES[header.architecture]],
        "model_type": header.architecture,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "intermediate_size": header.need("feed_forward_length"),
        "num_hidden_layers": header.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": header.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": header.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": header.get("rope.freq_base", 1e6 if header.architecture == "gemma3" else 1e4),
        "max_position_embeddings": header.need("context_length"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "dtype": dtype,
        "bos_token_id": header.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(header),
        "rope_scaling": _rope_scaling(header, head_dim),
    }
    return settings | _own(header)


def _own(header: Header) -> dict[str, Any]:
    """What one family alone has."""
    window = header.get("attention.sliding_window")
    biased = "blk.0.attn_q.bias" in header.tensors
    if header.architecture == "llama":
        if window:
            return {"architectures": ["MistralForCausalLM"], "sliding_window": window}
        return {"attention_bias": biased, "mlp_bias": "blk.0.ffn_up.bias" in header.tensors}
    if header.architecture == "qwen2":
        return {}
    if header.architecture == "qwen3":
        return {"attention_bias": biased}
    own = {"hidden_activation": "gelu_pytorch_tanh", "sliding_window": header.need("attention.sliding_window")}
    if header.architecture == "gemma2":
        own["attn_logit_softcapping"] = header.get("attn_logit_softcapping", 50.0)
        own["final_logit_softcapping"] = header.get("final_logit_softcapping", 30.0)
        # 27B scales by its own width over its heads, the others by the size of a head; llama.cpp tells them by layers
        wide = header.need("block_count") == 46
    else:
        wide = header.need("block_count") == 62
    heads, hidden = header.need("attention.head_count"), header.need("embedding_length")
    own["query_pre_attn_scalar"] = hidden // heads if wide else header.need("attention.key_length")
    return own


def _ends(header: Header) -> list[int]:
    """Every token that ends a text."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [header.metadata.get(f"tokenizer.ggml.{name}") for name in names]
    ids: dict[int, None] = dict.fromkeys(id for id in found if isinstance(id, int))
    tokens = header.metadata.get("tokenizer.ggml.tokens") or []
    kinds = header.metadata.get("tokenizer.ggml.token_type") or []
    typed = enumerate(zip(tokens, kinds, strict=False))
    ids |= {id: None for id, (token, kind) in typed if kind == _CONTROL and token in _ENDS}
    return list(ids)


def _rope_scaling(header: Header, head_dim: int) -> dict[str, Any] | None:
    kind = header.get("rope.scaling.type", "none")
    if "rope_freqs.weight" in header.tensors:
        return _llama3(header, head_dim)
    if kind == "none":
        return None
    if kind not in ("linear", "yarn"):
        raise header.refuse("rope.scaling.type", "is not supported: use none, linear or yarn")
    found = {"rope_type": kind, "factor": header.need("rope.scaling.factor")}
    if kind == "yarn":
        found["original_max_position_embeddings"] = header.need("rope.scaling.original_context_length")
    return found


def _llama3(header: Header, head_dim: int) -> dict[str, Any]:
    """Llama 3.1's stretched frequencies. The file holds only how much each is divided by; the numbers that they come
    from are found again: the low ones are divided by the whole factor, and the rest is the same in every release.

    Raises:
        UnsupportedModelError: other numbers were used.
    """
    stored = header.tensors["rope_freqs.weight"]
    given = np.fromfile(header.path, np.float32, stored.nbytes // 4, offset=stored.offset)
    found = {
        "rope_type": "llama3",
        "factor": float(given.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = header.get("rope.freq_base", 10_000.0)
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0, 1)
    divisors = 1 / ((1 - smooth) / found["factor"] + smooth)
    if len(given) != len(divisors) or not np.allclose(given, divisors, rtol=1e-3):
        raise UnsupportedModelError(
            f"{header.path}: the factors of rope_freqs.weight are not Llama 3's: use the model in safetensors"
        )
    return found
