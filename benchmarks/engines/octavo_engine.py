"""Octavo, as a benchmark runs it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from protocol import serve

# Of the benchmark's options, those that go to EngineConfig as they are, where they are given.
_CONFIG = ("batching", "quantization", "kv_cache_dtype", "num_threads")


def configure(folder: str, options: dict[str, Any]) -> Any:
    """The engine's configuration for a benchmark's options."""
    from octavo import EngineConfig

    return EngineConfig(
        model=folder,
        dtype=options["dtype"],
        max_num_seqs=options["max_num_seqs"],
        max_model_len=options["max_model_len"],
        num_blocks=options["kv_tokens"] // 16,
        **{name: options[name] for name in _CONFIG if name in options},
    )


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    import torch

    import octavo
    from octavo import LLMEngine, SamplingParams

    engine = LLMEngine(configure(folder, options))

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        engine.reset_prefix_cache()
        engine.reset_stats()
        params = [SamplingParams(temperature=0, ignore_eos=True, max_tokens=n) for n in workload["outputs"]]
        outputs = engine.generate(workload["prompts"], params)
        stats = engine.stats()
        return {
            "tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
            "kv_utilisation": stats.kv_utilisation,
            "preemptions": stats.num_preemptions,
            "model_seconds": stats.executor_seconds,
            "first": outputs[0].outputs[0].token_ids[:8],
            "notes": list(engine.facts.notes),
        }

    versions = {"octavo": octavo.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return run, versions


if __name__ == "__main__":  # the limits' script configures its engine alike
    serve(load)
