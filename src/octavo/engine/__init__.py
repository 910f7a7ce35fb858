"""The loop; prompts in, text out. No torch: the executor is loaded by name when an engine is made."""

from octavo.engine.engine import LLMEngine
from octavo.engine.llm import LLM, Delta
from octavo.engine.stats import EngineStats

__all__ = ["LLM", "Delta", "EngineStats", "LLMEngine"]
