"""What the prefix tree buys at the first token: requests that begin alike, with the tree and without.

    python benchmarks/shared_prefix.py [--model smollm2-135m] [--requests 32] [--prefix 512] [--repeat 3] [--json FILE]

All requests come at once: the same ``--prefix`` tokens, then 8 to 24 of their own; 16 tokens out. Both engines live in
one process and take turns; before each turn the tree is emptied, so that the prefix is computed once in it (in-batch
de-duplication), not found. Weights are random, of a real shape, in bfloat16. Prints the time to first token (median and
p99 over the requests, median and spread over the turns) and the ratio.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from machine import describe
from shapes import SHAPES, make_model

from octavo import EngineConfig, LLMEngine, SamplingParams


def turn(engine: LLMEngine, prompts: list[list[int]]) -> list[float]:
    """Seconds from arrival to first token, of each request, quickest first."""
    engine.reset_prefix_cache()
    outputs = engine.generate(prompts, SamplingParams(temperature=0, ignore_eos=True, max_tokens=16))
    return sorted((output.metrics.first_token or 0.0) - output.metrics.arrival for output in outputs)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(SHAPES), default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prefix", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    rng = random.Random(0)
    vocab = SHAPES[options.model][1]["vocab_size"]
    prefix = [rng.randrange(1, vocab) for _ in range(options.prefix)]
    prompts = [prefix + [rng.randrange(1, vocab) for _ in range(rng.randint(8, 24))] for _ in range(options.requests)]
    times: dict[bool, list[list[float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(make_model(options.model, Path(scratch) / options.model))
        common: dict[str, Any] = {
            "model": folder,
            "dtype": "bfloat16",
            "max_num_seqs": options.requests,
            "max_model_len": options.prefix + 64,
            "num_blocks": options.requests * (options.prefix // 16 + 5),
        }
        engines = {tree: LLMEngine(EngineConfig(**common, prefix_caching=tree)) for tree in (True, False)}
        for round_ in range(options.repeat + 1):  # the first warms up
            for tree, engine in engines.items():
                took = turn(engine, prompts)
                if round_:
                    times[tree].append(took)
        for engine in engines.values():
            engine.close()
    report: dict[str, Any] = {"machine": describe(), "options": {**vars(options), "json": None}}
    for tree, turns in times.items():
        halves = sorted(statistics.median(took) for took in turns)
        report["with tree" if tree else "without"] = {
            "ttft_p50": statistics.median(halves),
            "ttft_p50_spread": [halves[0], halves[-1]],
            "ttft_p99": statistics.median(took[round(0.99 * (len(took) - 1))] for took in turns),
        }
    report["ratio_p50"] = report["without"]["ttft_p50"] / report["with tree"]["ttft_p50"]
    report["ratio_p99"] = report["without"]["ttft_p99"] / report["with tree"]["ttft_p99"]
    print(f"{options.requests} requests, {options.prefix} tokens in common, {options.model} bfloat16\n")
    print("| prefix tree | time to first token p50, s (min-max) | p99, s |\n| --- | --- | --- |")
    for name in ("with tree", "without"):
        row = report[name]
        low, high = row["ttft_p50_spread"]
        print(f"| {name} | {row['ttft_p50']:.2f} ({low:.2f}-{high:.2f}) | {row['ttft_p99']:.2f} |")
    p50, p99 = report["ratio_p50"], report["ratio_p99"]
    print(f"\nwith the tree the first token comes {p50:.1f}x sooner (p50), {p99:.1f}x (p99)")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
