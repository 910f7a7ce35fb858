"""GGUF files written by llama.cpp's own package, from a model folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def random_blocks(rows: int, inputs: int, kind: Kind, seed: int = 0) -> np.ndarray:
    """Blocks of any bytes whose float16 scales are small: kinds that the package reads and does not write."""
    numbers, nbytes = gguf.GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, (rows, inputs // numbers, nbytes), dtype=np.uint8)
    places = {Kind.Q6_K: (208,), Kind.Q8_0: (0,), Kind.Q4_0: (0,), Kind.Q5_0: (0,)}.get(kind, (0, 2))
    for at in places:
        scales = generator.uniform(-2e-4, 2e-4, data.shape[:2]).astype(np.float16)
        data[:, :, at : at + 2] = scales[:, :, None].view(np.uint8)
    return data.reshape(rows, -1)


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key as llama.cpp's converter moves them."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    folder: Path,
    path: Path,
    architecture: str = "llama",
    kind: Callable[[str], Kind] = lambda name: Kind.F32,
    *,
    tokens: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, torch.Tensor]:
    """Write the model of ``folder`` to ``path``; returns the values that its tensors then stand for.

    Args:
        folder: in Hugging Face layout.
        path: of the file.
        architecture: as llama.cpp names it.
        kind: of a matrix, by transformers' name of it.
        tokens: ``tokenizer.ggml`` fields beside those made of the folder's tokenizer.
        metadata: further fields of the architecture, integers or floats.
    """
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    for name, value in (metadata or {}).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{architecture}.{name}", value)
    _write_tokenizer(writer, folder, tokens or {})
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    stands_for = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        value = tensor.float().numpy()
        short = _short(name, architecture)
        part = short.split(".")[-2]
        if architecture == "llama" and part in heads:
            value = turned(value, heads[part])
        if architecture.startswith("gemma") and "norm" in part:
            value = value + 1
        of = kind(name) if value.ndim == 2 else Kind.F32
        if of in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
            data = random_blocks(*value.shape, of, seed=len(stands_for))
        else:
            data = gguf.quantize(value, of)
        full = gguf.dequantize(data, of).reshape(value.shape)
        if architecture == "llama" and part in heads:
            back = np.empty_like(full)
            back[turned(np.arange(len(full)), heads[part])] = full
            full = back
        stands_for[name] = torch.from_numpy(full - (1 if architecture.startswith("gemma") and "norm" in part else 0))
        writer.add_tensor(short, data, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def write_vocabulary(folder: Path, path: Path, **fields: Any) -> None:
    """A file that holds a tokenizer and nothing else."""
    writer = gguf.GGUFWriter(path, "llama")
    _write_tokenizer(writer, folder, fields)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _short(name: str, architecture: str) -> str:
    names = {**NAMES, **(GEMMA if architecture.startswith("gemma") else {})}
    module, _, kind = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, part = module.split(".", 3)
        return f"blk.{layer}.{names[part]}.{kind}"
    return f"{names[module]}.{kind}"


def _write_tokenizer(writer: gguf.GGUFWriter, folder: Path, fields: Mapping[str, Any]) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    model = spec["model"]
    added = {token["id"]: token for token in spec["added_tokens"]}
    names = {id: token for token, id in model["vocab"].items()} | {id: token["content"] for id, token in added.items()}
    kinds = [3 if id in added and added[id]["special"] else 4 if id in added else 1 for id in range(len(names))]
    ids = {token: id for id, token in names.items()}
    writer.add_tokenizer_model(fields.get("model", "gpt2"))
    writer.add_tokenizer_pre(fields.get("pre", "gpt-2"))
    writer.add_token_list([names[id] for id in range(len(names))])
    writer.add_token_types([kinds[id] for id in range(len(names))])
    if fields.get("model") == "llama":
        order = [left + right for left, right in model["merges"]]
        writer.add_token_scores(
            [-float(order.index(names[id])) if names[id] in order else -1e6 for id in range(len(names))]
        )
    else:
        writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    for name, add in (("bos_token", writer.add_bos_token_id), ("eos_token", writer.add_eos_token_id)):
        if config.get(name) in ids:
            add(ids[config[name]])
    if "add_bos" in fields:
        writer.add_add_bos_token(fields["add_bos"])
    if "add_prefix" in fields:
        writer.add_add_space_prefix(fields["add_prefix"])
    if config.get("chat_template"):
        writer.add_chat_template(config["chat_template"])
