"""Fixtures shared by the engine's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_case import assert_clean
from tokenizer_folders import KINDS, word_piece

from octavo import EngineConfig, LLMEngine


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer of some kind, built once."""
    built: dict[str, Path] = {}
    makers = {**KINDS, "word_piece": word_piece}

    def folder(kind: str) -> Path:
        if kind not in built:
            built[kind] = makers[kind](tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder


@pytest.fixture(scope="session")
def shared_engine(tiny_llama: Path) -> Iterator[LLMEngine]:
    """One engine over a small random model, for tests that leave it as they found it (see ``engine``)."""
    config = EngineConfig(
        model=str(tiny_llama),
        dtype="float32",
        block_size=4,
        num_blocks=300,
        max_num_seqs=12,
        max_num_batched_tokens=64,
        num_threads=1,
    )
    with LLMEngine(config) as made:
        yield made


@pytest.fixture
def engine(shared_engine: LLMEngine) -> Iterator[LLMEngine]:
    """The shared engine, proved clean after the test."""
    shared_engine.reset_prefix_cache()
    yield shared_engine
    assert_clean(shared_engine)
