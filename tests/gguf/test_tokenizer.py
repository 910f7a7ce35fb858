"""A vocabulary out of a GGUF file is the tokenizer that it was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_vocabulary
from tokenizer_folders import SAMPLES, byte_level, gemma, sentencepiece

from octavo.engine.tokenizer import Tokenizer
from octavo.errors import UnsupportedModelError
from octavo.gguf.header import Header
from octavo.gguf.tokenizer import tokenizer_files

QWEN_SPLIT = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


def rebuilt(folder: Path, tmp_path: Path, **fields: Any) -> tuple[Tokenizer, Tokenizer]:
    """The folder's tokenizer, and what comes of it by way of a GGUF file."""
    write_vocabulary(folder, tmp_path / "vocabulary.gguf", **fields)
    backend, config = tokenizer_files(Header.read(tmp_path / "vocabulary.gguf"))
    (tmp_path / "again").mkdir()
    backend.save(str(tmp_path / "again" / "tokenizer.json"))
    (tmp_path / "again" / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(folder), Tokenizer.load(tmp_path / "again")


CASES: dict[str, Any] = {
    "llama 3": (lambda folder: byte_level(folder, bos=True), {"pre": "llama-bpe"}),
    "qwen": (lambda folder: byte_level(folder, normalizer=True, split=QWEN_SPLIT), {"pre": "qwen2"}),
    "gpt-2": (lambda folder: byte_level(folder, split=None), {"pre": "gpt-2"}),
    "llama 2": (lambda folder: sentencepiece(folder, spelled="metaspace"), {"model": "llama"}),
    "gemma": (gemma, {"model": "llama", "add_prefix": False, "add_bos": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_and_texts_are_those_of_the_original(tmp_path: Path, case: str) -> None:
    make, fields = CASES[case]
    before, after = rebuilt(make(tmp_path / "before"), tmp_path, **fields)
    for text in SAMPLES:
        ids = before.encode(text)
        assert after.encode(text) == ids, text
        assert after.decode(ids) == before.decode(ids)
    assert (after.bos_token_id, after.eos_token_id) == (before.bos_token_id, before.eos_token_id)
    assert after.special_ids == before.special_ids


def test_whether_a_text_is_opened_follows_the_file(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "before", bos=True)
    _, after = rebuilt(folder, tmp_path, pre="llama-bpe", add_bos=False)
    assert after.bos_token_id not in after.encode("Once")


def test_the_chat_template_comes_along(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "before")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": "{{ bos_token }}{{ messages[0]['content'] }}"})
    )
    _, after = rebuilt(folder, tmp_path)
    assert after.render_chat([{"role": "user", "content": "Hello"}]) == "<|begin_of_text|>Hello"


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"pre": "default"}, "tokenizer.ggml.pre"), ({"model": "t5"}, "tokenizer.ggml.model")],
)
def test_vocabularies_that_cannot_be_rebuilt_are_refused(tmp_path: Path, fields: dict[str, str], field: str) -> None:
    write_vocabulary(byte_level(tmp_path / "before"), tmp_path / "vocabulary.gguf", **fields)
    with pytest.raises(UnsupportedModelError, match=f"{field}=.*--tokenizer FOLDER"):
        tokenizer_files(Header.read(tmp_path / "vocabulary.gguf"))
