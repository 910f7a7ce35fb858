"""A checkpoint in Hugging Face layout as one GGUF file, for llama.cpp.

    python to_gguf.py FOLDER FILE

Runs in the peer's venv, which has the ``gguf`` package.

Matrices stay in bfloat16, norms become float32. llama.cpp's own converter wants a tokenizer that it knows by its hash;
the benchmarks' models have the bundled one, filled up to the size of their vocabulary, which is enough for token ids
to come and go.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tensors(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Name to uint16 (bfloat16's bits), of a safetensors file."""
    data = np.memmap(file, np.uint8, "r")
    (size,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + size].tobytes())
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{file}: {name} is {entry['dtype']}, not BF16")
        begin, end = entry["data_offsets"]
        found[name] = data[8 + size + begin : 8 + size + end].view(np.uint16).reshape(entry["shape"])
    return found


def named(name: str) -> str:
    """What llama.cpp calls a tensor."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    name = name.removesuffix(".weight")
    if name in whole:
        return whole[name] + ".weight"
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{_NAMES[rest]}.weight"


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows in the order of Llama's original rotary embedding, which turns neighbours, not halves."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def add_tokenizer(writer: gguf.GGUFWriter, file: Path, size: int) -> None:
    """The tokenizer's words, then fillers that nothing is merged into."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = {index: word for word, index in tokenizer["model"]["vocab"].items()}
    words.update((token["id"], token["content"]) for token in tokenizer["added_tokens"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([words.get(index, f"<filler_{index}>") for index in range(size)])
    kinds = (gguf.TokenType.NORMAL if index in words else gguf.TokenType.UNUSED for index in range(size))
    writer.add_token_types(list(kinds))
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_add_bos_token(False)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def main() -> None:
    """Convert."""
    folder, target = Path(sys.argv[1]), Path(sys.argv[2])
    config = json.loads((folder / "config.json").read_text())
    kind, heads = config["model_type"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(target, kind)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, folder / "tokenizer.json", config["vocab_size"])
    for name, bits in tensors(folder / "model.safetensors").items():
        if config["tie_word_embeddings"] and name == "lm_head.weight":
            continue
        if bits.ndim == 1:
            writer.add_tensor(named(name), (bits.astype(np.uint32) << 16).view(np.float32))
            continue
        if kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            bits = interleaved(bits, heads if "q_proj" in name else config["num_key_value_heads"])
        data = np.ascontiguousarray(bits).view(np.uint8)
        writer.add_tensor(named(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
