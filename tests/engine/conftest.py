"""Fixtures shared by the engine's text tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizer_folders import KINDS, word_piece


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
