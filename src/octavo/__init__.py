"""Octavo: an LLM inference engine built around paged KV memory, and the one engine whose memory you can see."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.engine import LLM, LLMEngine
    from octavo.paged_kv import PagedKVCache
    from octavo.request import RequestOutput, SamplingParams

__version__ = "0.1.0"

_HOMES = {
    "LLM": "octavo.engine",
    "LLMEngine": "octavo.engine",
    "EngineConfig": "octavo.config",
    "SamplingParams": "octavo.request",
    "RequestOutput": "octavo.request",
    "PagedKVCache": "octavo.paged_kv",
}

__all__ = ["LLM", "EngineConfig", "LLMEngine", "PagedKVCache", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Public names are imported from their home when first used, so that ``import octavo`` stays quick."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'octavo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
