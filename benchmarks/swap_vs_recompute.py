"""What it costs to give up a request's memory and have it back: by moving its blocks, and by computing them again.

    python benchmarks/swap_vs_recompute.py [--model smollm2-135m] [--lengths 64 256 960] [--repeat 9] [--json FILE]

One request runs alone; another of one token preempts it (there is one slot), ends at once, and the first goes on. Timed
are the step that puts it out and the step in which it computes again, each less a plain step of the same engine: of
each the quickest of all turns, for whatever else the machine does only adds. Without prefix caching, for otherwise
recomputing would find its blocks again. Both engines live in one process and take turns.
Beside the times stands what the cost model says beforehand, from the speeds that the engine measured when it was made,
and which way ``preemption="auto"`` goes. By default the bundled model; the others have real shapes and random weights.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from machine import describe
from shapes import SHAPES, make_model

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.memory import Departure
from octavo.scheduler.preemption_cost import prefers_swap, recompute_seconds, swap_seconds

BLOCK_SIZE = 16
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


class Turn(NamedTuple):
    """Seconds of the steps of one turn."""

    plain: float  #: one more token, nothing else
    out: float  #: the request loses its memory, another computes one token
    back: float  #: it has it again, and one more token
    blocks: int  #: moved out


def turn(engine: LLMEngine, length: int) -> Turn:
    """Put a request of ``length`` tokens out, and have it back."""

    def step() -> float:
        began = time.perf_counter()
        outputs = engine.step()
        seconds = time.perf_counter() - began
        finished.update({output.request_id: output for output in outputs if output.finished})
        return seconds

    finished: dict[str, Any] = {}
    vocab = engine.facts.vocab_size
    long = engine.add_request([1 + i % (vocab - 1) for i in range(length - 2)], SamplingParams(max_tokens=9, **GREEDY))
    step()
    plain = min(step(), step())  # the request has ``length`` tokens computed now
    urgent = engine.add_request([1], SamplingParams(max_tokens=1, **GREEDY), priority=-1)
    out = step()
    if urgent not in finished:
        raise SystemExit("the urgent request did not run at once")
    back = step()
    while long not in finished:
        step()
    if finished[long].metrics.num_preemptions != 1:
        raise SystemExit("the request was not preempted once")
    return Turn(plain, out, back, finished[long].metrics.num_swapped_out)


def quickest(turns: list[Turn]) -> tuple[float, float]:
    """Milliseconds that putting out and having back take, beyond a plain step."""
    plain = min(each.plain for each in turns)
    return 1e3 * (min(each.out for each in turns) - plain), 1e3 * (min(each.back for each in turns) - plain)


def measure(common: dict[str, Any], lengths: list[int], repeat: int) -> dict[str, Any]:
    """Times and predictions by context length."""
    engines = {way: LLMEngine(EngineConfig(**common, preemption=way)) for way in ("swap", "recompute")}
    with LLMEngine(EngineConfig(**common, preemption="auto")) as auto:
        config = auto.scheduler.config
    times: dict[tuple[str, int], list[Turn]] = {}
    for round_ in range(repeat + 1):  # the first warms up
        for length in lengths:
            for way, engine in engines.items():
                took = turn(engine, length)
                if round_:
                    times.setdefault((way, length), []).append(took)
    rows = []
    for length in lengths:
        out, back = quickest(times["swap", length])
        lost, again = quickest(times["recompute", length])
        pages = times["swap", length][0].blocks
        departure = Departure(pages, ((0, length),))
        rows.append(
            {
                "length": length,
                "blocks": pages,
                "swap_out_ms": out,
                "swap_in_ms": back,
                "swap_ms": out + back,
                "recompute_ms": lost + again,
                "predicted_swap_ms": 1e3 * swap_seconds(config, pages),
                "predicted_recompute_ms": 1e3 * recompute_seconds(config, 0, length),
                "auto": "swap" if prefers_swap(config, departure) else "recompute",
            }
        )
    for engine in engines.values():
        engine.close()
    numbers = ("page_bytes", "flops_per_token", "attention_flops", "link_bandwidth", "compute_speed")
    return {"numbers": {name: getattr(config, name) for name in numbers}, "rows": rows}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["tales", *SHAPES], default="tales")
    parser.add_argument("--lengths", type=int, nargs="+", default=[32, 64, 128, 256, 512, 960])
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    longest = max(options.lengths) + 32
    with tempfile.TemporaryDirectory() as scratch:
        folder = None if options.model == "tales" else str(make_model(options.model, Path(scratch) / options.model))
        common: dict[str, Any] = {
            "model": folder,
            "dtype": "bfloat16",
            "block_size": BLOCK_SIZE,
            "num_blocks": longest // BLOCK_SIZE + 2,
            "max_num_seqs": 1,
            "max_num_batched_tokens": longest,
            "policy": "priority",
            "prefix_caching": False,
            "swap_space": 0.5,
        }
        found = measure(common, options.lengths, options.repeat)
    report = {"machine": describe(), "options": {**vars(options), "json": None}, **found}
    numbers = found["numbers"]
    link, speed = numbers["link_bandwidth"] / 1e9, numbers["compute_speed"] / 1e9
    print(
        f"{options.model}, bfloat16, blocks of {BLOCK_SIZE} tokens and {numbers['page_bytes']:,} bytes; measured when "
        f"the engine was made: {link:.1f} GB/s, {speed:,.0f} GFLOP/s"
        "\n\n| tokens | swap, ms (out + in) | predicted | recompute, ms | predicted | auto |"
        "\n| --- | --- | --- | --- | --- | --- |"
    )
    for row in found["rows"]:
        print(
            f"| {row['length']} | {row['swap_ms']:.2f} ({row['swap_out_ms']:.2f} + {row['swap_in_ms']:.2f}) | "
            f"{row['predicted_swap_ms']:.2f} | {row['recompute_ms']:.2f} | {row['predicted_recompute_ms']:.2f} | "
            f"{row['auto']} |"
        )
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
