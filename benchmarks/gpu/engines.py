"""Whole engines on a GPU: decode steps beside their floor, nano-vllm's workload, static beside continuous batching.

Engines take the whole device, so each is started, measured and ended before the next begins.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine_process import EngineProcess
from gpu.ceilings import Ceilings
from shapes import SHAPES
from workloads import GPU_WORKLOADS, Workload

COMMON: dict[str, Any] = {
    "dtype": "bfloat16",
    "max_num_seqs": 256,
    "max_model_len": 2112,
    "max_num_batched_tokens": 8192,
    "gpu_memory_utilization": 0.85,
    "temperature": 0.6,
}
"""The same for every engine; the longest request has 1,024 tokens in and 1,024 out."""

TINY: dict[str, Any] = {
    "dtype": "float32", "max_num_seqs": 8, "max_model_len": 256, "kv_tokens": 2048, "temperature": 0.6,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class EngineResult:
    """One engine's figures on one workload."""

    engine: str
    workload: str
    samples: dict[str, list[float]]  #: figures of :meth:`Workload.figures`, and "step_seconds"
    extras: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    load_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Who is measured, on what, and how often."""

    model: Path
    shape: str
    device: str  #: "cuda"; "cpu" for the benchmark's own test
    vllm_python: str | None
    repeat: int

    def contenders(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Names, interpreters and options."""
        octavo = {**(COMMON if self.device == "cuda" else TINY), "device": self.device}
        found = [
            ("octavo", sys.executable, octavo),
            ("octavo-static", sys.executable, {**octavo, "batching": "static"}),
        ]
        if self.vllm_python:
            found.append(("vllm", self.vllm_python, COMMON))
        return found

    def loads(self) -> list[Workload]:
        """The workloads, shortened where there is no GPU."""
        if self.device == "cuda":
            return list(GPU_WORKLOADS.values())
        return [Workload(each.name, each.about, (40, 20), (4, 6), each.measures) for each in GPU_WORKLOADS.values()]


def measure_engines(plan: Plan) -> list[EngineResult]:
    """All of them, one after another."""
    results = []
    vocab_size = SHAPES[plan.shape][1]["vocab_size"]
    environment = {
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "VLLM_USE_V2_MODEL_RUNNER": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, python, options in plan.contenders():
        with tempfile.TemporaryDirectory() as scratch:
            print(f"  starting {name}", file=sys.stderr, flush=True)
            engine = EngineProcess(name, python, plan.model, options, Path(scratch) / "log", environment)
            try:
                for load in plan.loads():
                    if name != "octavo-static" or load.measures == "output tokens":
                        results.append(_measure(engine, load, vocab_size, plan))
            finally:
                engine.close()
    return results


def _measure(engine: EngineProcess, load: Workload, vocab_size: int, plan: Plan) -> EngineResult:
    prefill = load.prefill()
    samples: dict[str, list[float]] = {}
    extras: dict[str, float] = {}
    for turn in range(plan.repeat + 1):  # the first warms up: graphs are captured, kernels compiled
        first = engine.run(prefill.draw(vocab_size, turn))["seconds"] if prefill else 0.0
        report = engine.run(load.draw(vocab_size, turn))
        if report["tokens"] != sum(load.outputs):
            raise SystemExit(f"{engine.name} generated {report['tokens']} tokens of {sum(load.outputs)}")
        figures = load.figures(report["seconds"], first)
        if prefill:
            figures["step_seconds"] = (report["seconds"] - first) / (max(load.outputs) - 1)
        print(f"    {turn}/{plan.repeat} {engine.name:<14} {load.name}: {figures}", file=sys.stderr, flush=True)
        if turn:
            for name, value in figures.items():
                samples.setdefault(name, []).append(value)
        extras |= {name: report[name] for name in ("kv_utilisation", "preemptions") if name in report}
    if engine.name == "octavo" and prefill and plan.device == "cuda":
        # once more with every prompt in the prefix cache: nearly all steps are then decodes
        request = load.draw(vocab_size, "traced")
        engine.run(request)
        steady = engine.run(request | {"keeps_cache": True})
        extras["host_seconds_per_step"] = steady["host_seconds_per_step"]
        extras["busy_share"] = engine.run(request | {"keeps_cache": True, "traced": True})["busy_share"]
    return EngineResult(engine.name, load.name, samples, extras, engine.versions, engine.load_seconds)


def step_floor(shape: str, load: Workload, ceilings: Ceilings) -> float:
    """Seconds of a decode step that only reads: the weights once (a tied head once, the embedding's rows are nothing),
    and each sequence's keys and values at its mean length, at the rate of a large copy."""
    config = SHAPES[shape][1]
    hidden, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", hidden // heads)
    weights = layers * hidden * (2 * heads * dim + 2 * kv_heads * dim + 3 * inner) + hidden * config["vocab_size"]
    tokens = sum(prompt + out / 2 for prompt, out in zip(load.prompts, load.outputs, strict=True))
    return 2 * (weights + tokens * layers * 2 * kv_heads * dim) / ceilings.copy
