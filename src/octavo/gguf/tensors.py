"""The tensors of a GGUF file by the names that transformers gives them."""

from __future__ import annotations

import re
from typing import Any

from octavo.gguf.header import Header

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Gemma's, beside the others'."""
_ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3's; config.json's rope_scaling says the same."""
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def tensor_table(header: Header) -> dict[str, dict[str, Any]]:
    """For each tensor its kind, shape, offset and nbytes, and what was done to it that must be undone.

    ``heads``: rows of each of so many heads were moved so as to rotate neighbours instead of halves (llama.cpp's
    converter does that to query and key of Llama). ``plus``: so much was added to a norm's weight (Gemma's).
    """
    gemma = header.architecture.startswith("gemma")
    parts = {**_PARTS, **(_POST_NORMS if gemma else {})}
    heads = {"attn_q": header.need("attention.head_count")}
    heads["attn_k"] = header.get("attention.head_count_kv", heads["attn_q"])
    table = {}
    for name, stored in header.tensors.items():
        if name == _ROPE_FACTORS:
            continue
        found = _LAYER.fullmatch(name)
        if name in _WHOLE:
            known, part = _WHOLE[name], ""
        elif found is not None and found[2] in parts:
            known, part = f"model.layers.{found[1]}.{parts[found[2]]}.{found[3]}", found[2]
        else:
            known, part = name, ""
        entry: dict[str, Any] = {
            "kind": stored.kind,
            "shape": list(stored.shape),
            "offset": stored.offset,
            "nbytes": stored.nbytes,
        }
        if header.architecture == "llama" and part in heads:
            entry["heads"] = heads[part]
        if gemma and "norm" in known:
            entry["plus"] = 1
        table[known] = entry
    return table
