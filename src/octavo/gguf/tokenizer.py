"""A GGUF file's vocabulary as the tokenizer.json and tokenizer_config.json that go with the model elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import UnsupportedModelError
from octavo.gguf.header import Header

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS: dict[str, str | None] = {
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
    "smollm": r"\p{N}",
    "gpt-2": None,
}
"""``tokenizer.ggml.pre`` -> where a text is cut before anything is merged; None: where GPT-2 cuts. Those of "smollm"
cut digits apart, and then as GPT-2."""

_CONTROL, _USER_DEFINED = 3, 4  # a token's types
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def tokenizer_files(header: Header) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer, and what tokenizer_config.json says beside it (the chat template too).

    Raises:
        UnsupportedModelError: the vocabulary is of a kind that cannot be rebuilt.
    """
    from tokenizers import AddedToken

    tokens = header.metadata.get("tokenizer.ggml.tokens")
    kind = header.metadata.get("tokenizer.ggml.model")
    if not tokens or kind not in ("gpt2", "llama"):
        raise header.refuse("tokenizer.ggml.model", f"is not supported: use gpt2 or llama, or {_OTHER}")
    tokenizer = _byte_level(header, tokens) if kind == "gpt2" else _sentencepiece(header, tokens)
    kinds = header.metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    for token, of in zip(tokens, kinds, strict=True):
        if of == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif of == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])
    config: dict[str, Any] = {}
    for name, short in _NAMED.items():
        id = header.metadata.get(f"tokenizer.ggml.{short}_token_id")
        if isinstance(id, int) and id < len(tokens):
            config[name] = tokens[id]
    template = header.metadata.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    _frame(header, tokenizer, config)
    return tokenizer, config


_OTHER = "name another tokenizer with --tokenizer FOLDER"


def _frame(header: Header, tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """The tokens that the model expects around a text."""
    from tokenizers import processors

    kind, pre = header.metadata["tokenizer.ggml.model"], header.metadata.get("tokenizer.ggml.pre")
    usual = kind == "llama" or pre == "llama-bpe"
    first = config.get("bos_token") if header.metadata.get("tokenizer.ggml.add_bos_token", usual) else None
    last = config.get("eos_token") if header.metadata.get("tokenizer.ggml.add_eos_token", False) else None
    if first is None and last is None:
        return
    named = [token for token in (first, last) if token is not None]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*([first] if first else []), "$A", *([last] if last else [])],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in named],
    )


def _byte_level(header: Header, tokens: list[str]) -> Tokenizer:
    """GPT-2's kind: bytes, merged in the order the file gives."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = header.metadata.get("tokenizer.ggml.pre", "default")
    if pre not in SPLITS:
        raise header.refuse("tokenizer.ggml.pre", f"is not supported: use {', '.join(SPLITS)}, or {_OTHER}")
    pairs = [tuple(merge.split(" ")) for merge in header.metadata.get("tokenizer.ggml.merges") or []]
    if any(len(pair) != 2 for pair in pairs):
        raise UnsupportedModelError(f"{header.path}: tokenizer.ggml.merges must hold pairs of tokens")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    split = SPLITS[pre]
    stages: list[Any] = [] if split is None else [pre_tokenizers.Split(Regex(split), "isolated")]
    as_gpt2 = pre in ("smollm", "gpt-2")
    stages.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(stages)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(header: Header, tokens: list[str]) -> Tokenizer:
    """SentencePiece's kind: "▁" for spaces, bytes for unknown characters, merged by the score of what comes of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    scores = header.metadata.get("tokenizer.ggml.scores")
    if not scores or len(scores) != len(tokens):
        raise UnsupportedModelError(f"{header.path}: tokenizer.ggml.scores is missing; {_OTHER}")
    vocabulary = {token: id for id, token in enumerate(tokens)}
    unknown = header.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(header.metadata.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first" if prefix else "never", split=False)
    stages: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*stages, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that make a token, best score first."""
    found = [
        (-scores[id], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
        for token, id in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(found)]
