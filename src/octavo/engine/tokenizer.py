"""Text to token ids and back, on the ``tokenizers`` library and the files that lie beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.engine.chat_template import ChatTemplate
from octavo.errors import InvalidTokenError, ModelNotFoundError, RequestError, UnsupportedError, UnsupportedModelError
from octavo.hub import read_json

if TYPE_CHECKING:
    import tokenizers

    from octavo.engine.detokenizer import Pieces

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer: the ids that ``transformers.AutoTokenizer`` gives for the same folder, without importing
    transformers (which costs seconds).

    ``tokenizer.json`` says nearly everything; ``tokenizer_config.json`` adds the names of special tokens, tokens that
    were added later, and the chat template.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, config: Mapping[str, Any], template: ChatTemplate | None, folder: Path
    ) -> None:
        self.backend = backend
        self.config = config
        self.chat_template = template
        self.folder = folder
        self.special_tokens: dict[str, str] = _named_tokens(config)
        """Named special tokens, for instance ``{"eos_token": "</s>"}``."""
        self.special_ids: frozenset[int] = frozenset(
            id for id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        """Ids that ``skip_special_tokens`` leaves out."""

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ModelNotFoundError: there is no ``tokenizer.json`` (and no transformers to convert what there is).
            ModelError: a file is not what its name promises.
        """
        folder = Path(folder)
        config = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
        if "added_tokens_decoder" not in config and (folder / "special_tokens_map.json").is_file():
            config = {**config, **read_json(folder / "special_tokens_map.json")}
        path = folder / TOKENIZER_FILE
        if "unreadable" in config:  # a GGUF file's vocabulary, of a kind that cannot be rebuilt
            raise UnsupportedModelError(str(config["unreadable"]))
        backend = _from_file(folder, path, config) if path.is_file() else _from_transformers(folder)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        _add_tokens(backend, config)
        return cls(backend, config, ChatTemplate.load(folder, config, _named_tokens(config)), folder)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones included (a model's logits may be wider)."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        """The id that opens a text, or None."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, or None. (A model's generation_config.json may name further ones.)"""
        return self._named_id("eos_token")

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def is_special(self, token_id: int) -> bool:
        """Whether ``skip_special_tokens`` leaves this id out."""
        return token_id in self.special_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text; with ``add_special_tokens`` those that the model expects around it (often a "bos").

        Raises:
            RequestError: ``text`` is not a string, or holds a lone surrogate (which has no UTF-8 form).
        """
        if not isinstance(text, str):
            raise RequestError(f"a prompt must be a string or a list of token ids, not {type(text).__name__}")
        try:
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise RequestError(f"the prompt is not valid Unicode text: {error}") from None

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids; ids beyond the vocabulary have no text.

        Raises:
            InvalidTokenError: an id is negative, or not an integer.
        """
        try:
            return str(self.backend.decode(token_ids, skip_special_tokens=skip_special_tokens))
        except (OverflowError, TypeError) as error:
            raise InvalidTokenError(f"token ids must be integers of 0 and above: {error}") from None

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's entry as it is written in the file, or None."""
        return self.backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary entry, or None."""
        return self.backend.token_to_id(token)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The text that the model's chat template makes of a conversation.

        Raises:
            UnsupportedError: the model has no chat template.
            RequestError: the messages are malformed, or the template refuses them.
        """
        if self.chat_template is None:
            raise UnsupportedError(
                f"the model in {self.folder} has no chat template ({CONFIG_FILE} has no chat_template and there is no "
                "chat_template.jinja): use generate() with a plain prompt, or a chat-tuned model"
            )
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """The ids of a conversation. Templates write the special tokens themselves, so none is added."""
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)
        return self.encode(text, add_special_tokens=False)

    @cached_property
    def pieces(self) -> Pieces:
        """What each token adds to a text, shared by all incremental detokenizers of this tokenizer."""
        from octavo.engine.detokenizer import Pieces

        return Pieces.of(self)


def _from_file(folder: Path, path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        if _is_llama_class(folder, config):
            text = path.read_text(encoding="utf-8")
            if '"ByteLevel"' not in text:
                return tokenizers.Tokenizer.from_str(json.dumps(_as_llama(json.loads(text), config)))
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for whatever it cannot parse
        raise UnsupportedModelError(f"{path} is not a tokenizer that can be read: {error}") from None


def _is_llama_class(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether transformers would rebuild this tokenizer as its LlamaTokenizer (see :func:`_as_llama`)."""
    if str(config.get("tokenizer_class", "")).removesuffix("Fast") != "LlamaTokenizer":
        return False
    model = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return model.get("model_type") in (None, "llama")


def _as_llama(spec: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """SentencePiece-like Llama tokenizers: transformers 5 takes vocabulary, merges and post-processor from the file
    and sets the rest by the class. It matters for text after a special token, which gets no space of its own unless
    ``legacy`` is set; files written before spell the old way."""
    if spec.get("model", {}).get("type") not in (None, "BPE"):
        return spec
    prefix = config.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = ("always" if config.get("legacy", False) else "first") if prefix else "never"
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **spec,
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {**spec["model"], "fuse_unk": True, "byte_fallback": True, "dropout": None, "ignore_merges": False},
    }


def _from_transformers(folder: Path) -> tokenizers.Tokenizer:
    """Convert an older tokenizer through transformers, if that is installed."""
    missing = ModelNotFoundError(
        f"{folder} has no {TOKENIZER_FILE}: save one with "
        "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )
    if not any((folder / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")):
        raise missing
    try:
        from transformers import AutoTokenizer

        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        ).backend_tokenizer
    except Exception as error:
        raise ModelNotFoundError(f"{missing} (converting what there is failed: {error})") from None
    return backend


def _content(token: object) -> str | None:
    """A special token is written as a string, or as an object with its ``content``."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: value for name, value in found.items() if value is not None}


def _add_tokens(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Add what the configuration names and the file lacks: listed added tokens in order of id, then special ones."""
    from tokenizers import AddedToken

    def added(value: object, **defaults: bool) -> AddedToken | None:
        content = _content(value)
        if content is None:
            return None
        flags = dict(defaults)
        if isinstance(value, Mapping):
            known = ("single_word", "lstrip", "rstrip", "normalized", "special")
            flags.update({name: bool(value[name]) for name in known if name in value})
        return AddedToken(content, **flags)

    listed = config.get("added_tokens_decoder")
    if isinstance(listed, Mapping):
        for _, value in sorted(listed.items(), key=lambda item: int(item[0])):
            token = added(value)
            if token is not None:
                backend.add_tokens([token])
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    specials = [config.get(name) for name in _NAMED]
    specials += list(extra.values()) if isinstance(extra, Mapping) else list(extra)
    for value in specials:
        token = added(value, normalized=False)
        if token is not None:
            backend.add_special_tokens([token])
