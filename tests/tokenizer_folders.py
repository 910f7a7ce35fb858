"""Small tokenizers of the kinds that language models use, built from scratch into model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "Once upon a time there was a king who had a daughter, and she was more beautiful than the sun.",
    "The old woman said: 'It's 3 miles to the castle, and 1234 steps up the tower!'",
    "Grüß Gott, sagte der Müller; über allen Gipfeln ist Ruh'. Ça va? Déjà vu, naïve façade.",
    "猫が好きです。你好,世界! Привет, мир. 🙂🙂 👩‍👩‍👧",
    "def fold(sheet, times=3):\n    return [leaf for leaf in range(2 ** times)]\n\n\tprint('  spaces   and\ttabs')",
] * 4

SAMPLES = [
    "",
    " ",
    "Once upon a time",
    "  leading and trailing  ",
    "It's 1234, isn't it?\n\n\nYes.",
    "naïve façade — “quoted”",
    "日本語と🙂 emoji 👩‍👩‍👧",
    "a<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] tell me a tale [/INST] once</s><s>[INST] more [/INST]",
    "tab\there  two   three",
    "\x00\x7f\u200b",
    "e\u0301 combining",
]

LLAMA3_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def save(folder: Path, backend: Tokenizer, config: dict[str, Any], model_type: str) -> Path:
    """Write a model folder that both Octavo and AutoTokenizer can read."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), encoding="utf-8")
    return folder


def byte_level(folder: Path, *, bos: bool = False, normalizer: bool = False, split: str | None = LLAMA3_SPLIT) -> Path:
    """As Llama 3 (with a "bos" template) or Qwen (NFC, none)."""
    backend = Tokenizer(models.BPE())
    if normalizer:
        backend.normalizer = normalizers.NFC()
    stages: list[Any] = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    stages.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(stages)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_special_tokens(["<|begin_of_text|>", "<|im_start|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("【x】", normalized=False)])
    if bos:
        template = [("<|begin_of_text|>", backend.token_to_id("<|begin_of_text|>"))]
        backend.post_processor = processors.Sequence(
            [
                processors.ByteLevel(trim_offsets=False),
                processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=template),
            ]
        )
    else:
        backend.post_processor = processors.ByteLevel(trim_offsets=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|im_end|>",
        "add_bos_token": False,
    }
    return save(folder, backend, config, "qwen3" if normalizer else "llama")


def sentencepiece(folder: Path, *, spelled: str = "prepend", **config: Any) -> Path:
    """As Llama 2 and Mistral: spaces are "▁", unknown characters are bytes."""
    alphabet = sorted({letter for text in CORPUS[:3] for letter in text.replace(" ", "▁")})
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, limit_alphabet=70, show_progress=False
    )
    backend.train_from_iterator(["▁" + text for text in CORPUS], trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    backend = Tokenizer.from_str(json.dumps(spec))
    sequence = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if spelled == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([*sequence, decoders.Strip(" ", 1, 0)])
    elif spelled == "metaspace":
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        backend.decoder = decoders.Sequence([*sequence, decoders.Strip(" ", 1, 0)])
    else:  # "bare": no space before the first word, and none taken away
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence(sequence)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    model_type = config.pop("model_type", "llama")
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}
    return save(folder, backend, {**named, **config}, model_type)


def metaspace_decoder(folder: Path) -> Path:
    """A lone Metaspace decoder, without byte tokens."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return save(folder, backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}, "llama")


def word_piece(folder: Path) -> Path:
    """A decoder that is none of the usual ones."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return save(folder, backend, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]"}, "llama")


def gemma(folder: Path) -> Path:
    """As Gemma 2 and 3: "▁" for spaces and none before the first word, bytes, marks of turns, runs of newlines."""
    alphabet = sorted({letter for text in CORPUS[:3] for letter in text.replace(" ", "▁")})
    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    named = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[*named, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        limit_alphabet=70,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < len(named)]
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    backend.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("\n\n", "\n\n\n", "<table>")])
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "spaces_between_special_tokens": False,
    }
    return save(folder, backend, config, "gemma3_text")


KINDS = {
    "llama3": lambda folder: byte_level(folder, bos=True),
    "qwen": lambda folder: byte_level(folder, normalizer=True),
    "gpt2-like": lambda folder: byte_level(folder, split=None),
    "llama2": lambda folder: sentencepiece(folder, tokenizer_class="LlamaTokenizer"),
    "llama2-legacy": lambda folder: sentencepiece(folder, tokenizer_class="LlamaTokenizerFast", legacy=True),
    "mistral": lambda folder: sentencepiece(
        folder, spelled="metaspace", tokenizer_class="LlamaTokenizer", model_type="mistral"
    ),
    "bare": lambda folder: sentencepiece(folder, spelled="bare", tokenizer_class="PreTrainedTokenizerFast"),
    "metaspace": metaspace_decoder,
    "gemma": gemma,
}
