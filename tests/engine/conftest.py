"""Fixtures shared by the engine's text tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def _module(name: str) -> ModuleType:
    """Import a helper that lies beside this file (tests are no package)."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tokenizer_folders = _module("tokenizer_folders")


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tokenizer of some kind, built once."""
    built: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in built:
            make = tokenizer_folders.KINDS.get(kind) or getattr(tokenizer_folders, kind)
            built[kind] = make(tmp_path_factory.mktemp(kind))
        return built[kind]

    return folder
