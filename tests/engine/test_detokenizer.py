"""The incremental detokenizer against decoding everything at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_folders import KINDS, SAMPLES

from octavo.engine.detokenizer import BytePieces, IncrementalDetokenizer, TextPieces, WindowPieces
from octavo.engine.tokenizer import Tokenizer

Folder = Callable[[str], Path]


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request: pytest.FixtureRequest, tokenizer_folder: Folder) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder(request.param))


def stream(tokenizer: Tokenizer, ids: Sequence[int], sizes: Sequence[int], skip: bool) -> list[str]:
    """Push ids in parts of the given sizes, then finish."""
    detokenizer = IncrementalDetokenizer(tokenizer, (), skip)
    parts, place = [], 0
    for size in sizes:
        parts.append(detokenizer.push(ids[place : place + size]))
        place += size
    parts.append(detokenizer.push(ids[place:]))
    return [*parts, detokenizer.finish()]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_ids_decode_as_all_at_once(tokenizer: Tokenizer, data: st.DataObject) -> None:
    top = tokenizer.vocab_size + 3  # ids beyond the vocabulary have no text
    some = st.integers(0, top) | st.integers(0, min(top, 270))  # the first ones are bytes, or special
    ids = data.draw(st.lists(some, max_size=40))
    sizes = data.draw(st.lists(st.integers(0, 3), max_size=40))
    skip = data.draw(st.booleans())
    assert "".join(stream(tokenizer, ids, sizes, skip)) == tokenizer.decode(ids, skip)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), skip=st.booleans())
def test_text_comes_back_one_token_at_a_time(tokenizer: Tokenizer, text: str, skip: bool) -> None:
    ids = tokenizer.encode(text)
    parts = stream(tokenizer, ids, [1] * len(ids), skip)
    whole = tokenizer.decode(ids, skip)
    assert "".join(parts) == whole
    if "�" not in whole:
        assert not any("�" in part for part in parts)


@settings(max_examples=100, deadline=None)
@given(prompt=st.sampled_from(SAMPLES), text=st.text(max_size=20), skip=st.booleans())
def test_text_after_a_prompt_keeps_its_first_space(tokenizer: Tokenizer, prompt: str, text: str, skip: bool) -> None:
    before, after = tokenizer.encode(prompt), tokenizer.encode(text, add_special_tokens=False)
    whole, start = tokenizer.decode(before + after, skip), tokenizer.decode(before, skip)
    detokenizer = IncrementalDetokenizer(tokenizer, before, skip)
    out = "".join([*(detokenizer.push([token]) for token in after), detokenizer.finish()])
    if whole.startswith(start) and "�" not in whole:
        assert start + out == whole


def test_each_kind_has_its_own_reading(tokenizer_folder: Folder) -> None:
    kinds = {kind: type(Tokenizer.load(tokenizer_folder(kind)).pieces) for kind in (*KINDS, "word_piece")}
    assert kinds["llama3"] is kinds["qwen"] is kinds["gpt2-like"] is BytePieces
    assert kinds["llama2"] is kinds["mistral"] is kinds["bare"] is kinds["metaspace"] is TextPieces
    assert kinds["word_piece"] is WindowPieces


def test_half_a_character_is_held_back(tokenizer_folder: Folder) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("llama3"))
    ids = [tokenizer.token_to_id(letter) for letter in ("ð", "Ł", "ĺ", "Ģ")]  # the bytes F0 9F 98 80
    assert None not in ids
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push([token]) for token in ids] == ["", "", "", "😀"]
    assert detokenizer.finish() == ""
    assert detokenizer.push(ids[:2]) == ""
    assert detokenizer.finish() == "�"


def test_a_character_begun_in_the_prompt_is_completed(tokenizer_folder: Folder) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("llama3"))
    ids = [tokenizer.token_to_id(letter) for letter in ("ð", "Ł", "ĺ", "Ģ")]
    detokenizer = IncrementalDetokenizer(tokenizer, [*tokenizer.encode("Hi "), *ids[:2]])
    assert detokenizer.push(ids[2:]) == "😀"
    tokenizer = Tokenizer.load(tokenizer_folder("llama2"))
    ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in "é🙂".encode()]
    detokenizer = IncrementalDetokenizer(tokenizer, [*tokenizer.encode("Hi"), *ids[:4]])
    assert detokenizer.push(ids[4:]) == ""  # a run of bytes is decoded when it ends
    assert detokenizer.push(tokenizer.encode("Hi", add_special_tokens=False)) == "🙂 Hi"


@pytest.mark.parametrize("sample", SAMPLES)
def test_other_decoders_run_on_a_window(tokenizer_folder: Folder, sample: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder("word_piece"))
    ids = tokenizer.encode(" ".join([sample] * 6))
    assert "".join(stream(tokenizer, ids, [1] * len(ids), True)) == tokenizer.decode(ids)


@pytest.mark.alone
@pytest.mark.parametrize("kind", ["llama3", "llama2"])
def test_the_cost_of_a_token_does_not_grow(tokenizer_folder: Folder, kind: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder(kind))
    ids = (tokenizer.encode(" ".join(SAMPLES), add_special_tokens=False) * 200)[:20_000]

    def cost(count: int) -> float:
        detokenizer = IncrementalDetokenizer(tokenizer)
        start = time.perf_counter()
        for token in ids[:count]:
            detokenizer.push([token])
        return (time.perf_counter() - start) / count

    cost(1000)
    assert min(cost(20_000) for _ in range(3)) < 4 * min(cost(1000) for _ in range(3)) + 5e-6
