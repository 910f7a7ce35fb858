"""Octavo's tokenizer against transformers' AutoTokenizer, on folders built here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import KINDS, SAMPLES

from octavo.engine.tokenizer import Tokenizer
from octavo.errors import InvalidTokenError, ModelError, ModelNotFoundError, RequestError

Folder = Callable[[str], Path]

MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool call>", "【x】", " ", "▁", "<0x41>", "\n"]


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request: pytest.FixtureRequest, tokenizer_folder: Folder) -> tuple[Tokenizer, Any]:
    from transformers import AutoTokenizer

    folder = tokenizer_folder(request.param)
    return Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("special", [True, False])
def test_samples_encode_as_in_transformers(pair: tuple[Tokenizer, Any], sample: str, special: bool) -> None:
    ours, theirs = pair
    assert ours.encode(sample, add_special_tokens=special) == theirs.encode(sample, add_special_tokens=special)


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.sampled_from(MARKS) | st.text(max_size=12), max_size=6), special=st.booleans())
def test_any_text_encodes_and_decodes_as_in_transformers(
    pair: tuple[Tokenizer, Any], parts: list[str], special: bool
) -> None:
    ours, theirs = pair
    text = "".join(parts)
    ids = ours.encode(text, add_special_tokens=special)
    assert ids == theirs.encode(text, add_special_tokens=special)
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_special_tokens_are_those_of_transformers(pair: tuple[Tokenizer, Any]) -> None:
    ours, theirs = pair
    assert ours.vocab_size == len(theirs)
    assert ours.eos_token_id == theirs.eos_token_id
    assert ours.bos_token_id == theirs.bos_token_id
    assert set(theirs.all_special_ids) <= set(ours.special_ids)
    assert all(ours.is_special(id) for id in theirs.all_special_ids)


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """A copy of a folder with its tokenizer_config.json changed."""
    shutil.copytree(folder, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": {"__type": "AddedToken", "content": "<|end|>", "lstrip": False, "normalized": False}},
        {"additional_special_tokens": ["<|think|>", "<|tool|>"]},
        {"extra_special_tokens": {"image_token": "<|image|>"}},
        {"pad_token": "king"},
        {"split_special_tokens": True},
        {
            "added_tokens_decoder": {
                "507": {"content": "<later>", "special": False, "normalized": False, "lstrip": True, "rstrip": True},
                "506": {"content": "<|first|>", "special": True, "normalized": False},
            }
        },
    ],
    ids=lambda config: next(iter(config)),
)
def test_tokens_added_by_the_configuration(tokenizer_folder: Folder, tmp_path: Path, config: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    folder = changed(tokenizer_folder("llama3"), tmp_path / "model", **config)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(str(folder))
    text = "A king <|end|> and <|think|><|tool|> a <later> one<|first|><|image|> king<|im_end|>."
    assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == len(theirs)
    for skip in (True, False):
        assert ours.decode(ours.encode(text), skip) == theirs.decode(theirs.encode(text), skip_special_tokens=skip)


def test_a_special_tokens_map_of_older_writers(tokenizer_folder: Folder, tmp_path: Path) -> None:
    folder = changed(tokenizer_folder("qwen"), tmp_path / "model")
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|old|>"}}))
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.special_tokens["eos_token"] == "<|old|>"
    assert tokenizer.encode("<|old|>") == [tokenizer.eos_token_id]


def test_saved_truncation_and_padding_are_not_applied(tokenizer_folder: Folder, tmp_path: Path) -> None:
    folder = changed(tokenizer_folder("llama3"), tmp_path / "model")
    whole = Tokenizer.load(folder).encode("king " * 50)
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    spec["padding"] = {
        "strategy": {"Fixed": 400}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert Tokenizer.load(folder).encode("king " * 50) == whole


def test_no_configuration_is_needed(tokenizer_folder: Folder, tmp_path: Path) -> None:
    shutil.copy(tokenizer_folder("llama3") / "tokenizer.json", tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token_id is None
    assert tokenizer.decode(tokenizer.encode("Once")) == "Once"


def test_a_folder_without_a_tokenizer_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_an_older_tokenizer_is_converted_by_transformers(tmp_path: Path) -> None:
    vocabulary = {letter: place for place, letter in enumerate(["a", "b", "ab", "Ġ", "Ġab", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert Tokenizer.load(tmp_path).encode("ab ab") == [2, 4]


def test_a_broken_old_tokenizer_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ModelNotFoundError, match=r"has no tokenizer\.json.*failed"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}'])
def test_broken_files_are_named(tokenizer_folder: Folder, tmp_path: Path, name: str, text: str) -> None:
    folder = changed(tokenizer_folder("llama2"), tmp_path / "model")
    (folder / name).write_text(text)
    if name == "tokenizer_config.json" and text.startswith('{"'):
        assert Tokenizer.load(folder).eos_token_id is None
        return
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        Tokenizer.load(folder)


def test_bad_input_is_refused(tokenizer_folder: Folder) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("llama3"))
    with pytest.raises(RequestError, match="string or a list of token ids"):
        tokenizer.encode(5)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="not valid Unicode"):
        tokenizer.encode("a\ud800b")
    with pytest.raises(InvalidTokenError, match="integers of 0 and above"):
        tokenizer.decode([-1])
    with pytest.raises(InvalidTokenError, match="integers of 0 and above"):
        tokenizer.decode(["a"])  # type: ignore[list-item]


def test_no_heavy_import(tokenizer_folder: Folder) -> None:
    code = (
        "import sys; from octavo.engine.tokenizer import Tokenizer; t = Tokenizer.load(sys.argv[1]); t.encode('a');"
        "print([name for name in ('torch', 'numba', 'transformers') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tokenizer_folder("llama3"))], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
