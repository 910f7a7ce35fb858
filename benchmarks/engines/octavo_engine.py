"""Octavo, as a benchmark runs it."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

from protocol import serve

# Of the benchmark's options, those that go to EngineConfig as they are, where they are given.
_CONFIG = (
    "batching",
    "quantization",
    "kv_cache_dtype",
    "num_threads",
    "device",
    "depth",
    "gpu_memory_utilization",
    "max_num_batched_tokens",
)


def configure(folder: str, options: dict[str, Any]) -> Any:
    """The engine's configuration for a benchmark's options."""
    from octavo import EngineConfig

    return EngineConfig(
        model=folder,
        dtype=options["dtype"],
        max_num_seqs=options["max_num_seqs"],
        max_model_len=options["max_model_len"],
        num_blocks=options["kv_tokens"] // 16 if "kv_tokens" in options else None,
        **{name: options[name] for name in _CONFIG if name in options},
    )


class Waits:
    """Seconds that this process has spent waiting for a GPU's events: what is left of the wall clock is its own."""

    def __init__(self) -> None:
        import torch

        self.seconds = 0.0
        synchronize = torch.cuda.Event.synchronize

        def timed(event: torch.cuda.Event) -> None:
            began = time.perf_counter()
            synchronize(event)
            self.seconds += time.perf_counter() - began

        torch.cuda.Event.synchronize = timed


def busy_share(run: Callable[[], None]) -> float:
    """The share of the time between a run's first and last kernel in which the GPU computed or copied."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        run()
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in trace.events()
        if event.device_type == DeviceType.CUDA
    )
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / (reached - spans[0][0])


def load(folder: str, options: dict[str, Any]) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, str]]:
    import torch

    import octavo
    from octavo import LLMEngine, SamplingParams

    waits = Waits() if options.get("device") == "cuda" else None
    engine = LLMEngine(configure(folder, options))
    temperature = options.get("temperature", 0)

    def run(workload: dict[str, Any]) -> dict[str, Any]:
        if not workload.get("keeps_cache"):
            engine.reset_prefix_cache()
        engine.reset_stats()
        waited = waits.seconds if waits else 0.0
        began = time.perf_counter()
        params = [SamplingParams(temperature=temperature, ignore_eos=True, max_tokens=n) for n in workload["outputs"]]
        outputs = engine.generate(workload["prompts"], params)
        seconds = time.perf_counter() - began
        stats = engine.stats()
        report: dict[str, Any] = {}
        if waits:
            report["host_seconds_per_step"] = (seconds - (waits.seconds - waited)) / stats.num_steps
        if workload.get("traced"):
            report["busy_share"] = busy_share(lambda: engine.generate(workload["prompts"], params) and None)
        return report | {
            "steps": stats.num_steps,
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
