"""Continuous against static batching on a chat load, simulated with a GPU's costs.

    python benchmarks/batching.py [--requests 2000] [--cost h100-8b] [--json FILE]

The load is made up after the figures that are public of the Azure conversation trace of 2023 (Splitwise, ISCA '24):
prompts of 1,155 tokens on average (median 1,020), outputs of 211 (median 129), log-normal, all waiting from the
beginning. Same scheduler, same costs, same memory; "static" admits nobody until the whole batch has ended.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from pathlib import Path

from octavo.config import EngineConfig
from octavo.simulator.cost import machine
from octavo.simulator.report import Report
from octavo.simulator.simulation import simulation
from octavo.simulator.trace import Trace, TraceRequest

PROMPT = (1155, 1020)
OUTPUT = (211, 129)
"""Mean and median."""


def chat_load(count: int, seed: int = 0) -> Trace:
    """Requests as in a chat service, all at once."""
    rng = random.Random(seed)

    def length(mean: float, median: float, most: int) -> int:
        sigma = math.sqrt(2 * math.log(mean / median))
        return max(1, min(most, round(rng.lognormvariate(math.log(median), sigma))))

    requests = tuple(TraceRequest(0.0, length(*PROMPT, 8192), length(*OUTPUT, 2048)) for _ in range(count))
    return Trace(f"chat load ({count})", "azure", requests)


def run(trace: Trace, cost: str, batching: str, max_num_seqs: int) -> Report:
    config = EngineConfig(
        batching=batching, max_num_seqs=max_num_seqs, max_num_batched_tokens=8192, prefix_caching=False
    )
    return simulation(trace, config, machine(cost)).run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--cost", default="h100-8b")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trace = chat_load(options.requests)
    prompt = sum(request.num_prompt for request in trace.requests) / len(trace.requests)
    output = sum(request.num_output for request in trace.requests) / len(trace.requests)
    print(f"{options.requests} requests, {prompt:.0f} tokens in and {output:.0f} out on average, {options.cost}")
    rows = []
    for seats in (16, 32, 64, 128, 256):
        reports = {name: run(trace, options.cost, name, seats) for name in ("static", "continuous")}
        rates = {name: report.output_tokens_per_second for name, report in reports.items()}
        rows.append(
            {
                "max_num_seqs": seats,
                "output_tokens_per_second": rates,
                "resident": {name: report.resident for name, report in reports.items()},
                "ratio": rates["continuous"] / rates["static"],
            }
        )
        print(
            f"batch of {seats:3}: static {rates['static']:8,.0f} output tokens/s, continuous "
            f"{rates['continuous']:8,.0f}: {rows[-1]['ratio']:.2f}x",
            flush=True,
        )
    if options.json is not None:
        load = {"requests": options.requests, "mean_prompt": prompt, "mean_output": output}
        options.json.write_text(json.dumps({"cost": options.cost, "load": load, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
