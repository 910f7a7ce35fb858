"""Random-weight checkpoints in Hugging Face layout, written by transformers itself, with a small tokenizer beside them.

``make_checkpoint(folder, "llama", hidden_size=96, ...)`` takes any field of the family's transformers configuration.
Weights are scaled per matrix so that hidden states keep their size through the layers and logits spread (standard
deviation about 3): with transformers' default initialisation they would be nearly flat, and a comparison of arg-maxes
would compare rounding noise.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

FAMILIES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mistral": ("MistralConfig", "MistralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gemma3 with vision": ("Gemma3Config", "Gemma3ForConditionalGeneration"),
}

OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 9.0},
    "gemma3": {"query_pre_attn_scalar": 24, "sliding_window_pattern": 2},
}
OWN_DEFAULTS["gemma3 with vision"] = OWN_DEFAULTS["gemma3"]

_EYES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

DEFAULTS: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_TEXT = (
    "Once upon a time there was a king who had a daughter, and she was so beautiful that the sun himself, who has seen "
    "so much, was astonished whenever he shone in her face. The old woman said to the youngest son: take the golden "
    "bird, and go into the forest, and there you will find what you are looking for."
)


def make_checkpoint(
    folder: Path | str,
    family: str = "llama",
    *,
    dtype: str = "float32",
    seed: int = 0,
    max_shard_size: str = "5GB",
    tokenizer: bool = True,
    logit_std: float = 3.0,
    **overrides: Any,
) -> Path:
    """Write a checkpoint and return its folder.

    Args:
        folder: made if missing.
        family: a key of ``FAMILIES``.
        dtype: of the stored weights.
        seed: of the weights.
        max_shard_size: such as "40KB", to get several shards and an index.
        tokenizer: write tokenizer.json (byte-level BPE, <s> is 0, </s> is 1) and tokenizer_config.json too.
        logit_std: the spread of the logits, about.
        **overrides: fields of the transformers configuration.
    """
    import torch
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config_name, model_name = FAMILIES[family]
    fields = {**DEFAULTS, **OWN_DEFAULTS.get(family, {}), **overrides}
    fields = {name: value for name, value in fields.items() if value is not ...}
    if family.endswith("with vision"):
        fields = {"text_config": fields, "vision_config": _EYES, "mm_tokens_per_image": 1}
    config = getattr(transformers, config_name)(**fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, model_name)(config).to(torch.float32).eval()
        _spread(model, logit_std)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        write_tokenizer(folder, config.get_text_config().vocab_size)
    return folder


def load_reference(folder: Path | str, dtype: str = "float32", attention: str = "eager") -> Any:
    """transformers' own model of the folder, for comparisons."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    ).eval()


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level BPE tokenizer of at most ``vocab_size`` entries (needs 258 for all bytes)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "model_max_length": 512,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _spread(model: Any, logit_std: float) -> None:
    import torch

    config = model.config.get_text_config()
    # Gemma's norms multiply by 1 + weight; those after attention and feed-forward part set how much these add to the
    # scaled embedding, which would drown them: with tied embeddings every token would be followed by itself.
    gemma = config.model_type.startswith("gemma")
    head = logit_std / math.sqrt(config.hidden_size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                after = gemma and ("post_attention" in name or "post_feedforward" in name)
                weight.copy_((7.0 if after else 0.0 if gemma else 1.0) + 0.2 * torch.randn_like(weight))
            elif name.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            elif "lm_head" in name or (config.tie_word_embeddings and "embed_tokens" in name):
                weight.normal_(0.0, head)
            elif "embed_tokens" in name:
                weight.normal_(0.0, 1.0)
            else:
                weight.normal_(0.0, 1.5 / math.sqrt(weight.shape[1]))
