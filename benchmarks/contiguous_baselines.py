"""What paging buys: the same load on the same memory, paged and contiguous.

    python benchmarks/contiguous_baselines.py TRACE... [--cost h100-8b] [--requests 1500] [--json FILE]

TRACE: the Azure code trace of 2023 and the Mooncake conversation, for instance. All requests wait from the beginning,
so that memory (and not the arrivals) says how many run together; nobody shares prefixes, so that it is paging alone
that is compared. "reserve-max" sets aside the longest request of the trace for everybody, which is generous: systems
set aside the model's context. A second table has the trace's own arrivals, for the waste in everyday running.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from octavo.config import EngineConfig
from octavo.memory.contiguous import RULES
from octavo.simulator.cost import Machine, machine
from octavo.simulator.report import Report
from octavo.simulator.simulation import contiguous_simulation, simulation
from octavo.simulator.trace import Trace
from octavo.simulator.trace_reader import read_trace


def reports(trace: Trace, on: Machine, block_sizes: list[int]) -> dict[str, Report]:
    """A report for each way to keep memory."""
    found = {}
    for size in block_sizes:
        config = EngineConfig(
            block_size=size, max_num_seqs=1024, max_num_batched_tokens=8192, prefix_caching=False,
            max_model_len=trace.longest,
        )  # fmt: skip
        found[f"paged, {size} a block"] = simulation(trace, config, on).run()
    for rule in RULES:
        config = EngineConfig(max_num_seqs=1024, max_num_batched_tokens=8192, max_model_len=trace.longest)
        found[f"contiguous, {rule}"] = contiguous_simulation(trace, config, on, rule).run()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument("--cost", default="h100-8b")
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    on = machine(options.cost)
    results = []
    for path in options.traces:
        whole = read_trace(path)
        part = whole.first(min(options.requests, len(whole.requests)))
        for load, trace in (("all at once", part.stretched(0)), ("as they came", part)):
            print(f"{trace.name}, {len(trace.requests)} requests {load}, longest {trace.longest:,}; {options.cost}")
            print(f"{'':28}{'requests/s':>11}{'together':>10}{'at most':>9}{'held':>8}{'filled':>8}{'waste':>8}")
            for name, report in reports(trace, on, [16] if load == "as they came" else [16, 64, 256]).items():
                print(
                    f"{name:28}{report.requests_per_second:>11.2f}{report.resident:>10.1f}{report.peak_resident:>9}"
                    f"{report.held:>8.1%}{report.filled:>8.1%}{1 - report.utilisation:>8.2%}",
                    flush=True,
                )
                results.append({"load": load, "memory": name, "waste": 1 - report.utilisation, **report.as_dict()})
    if options.json is not None:
        options.json.write_text(json.dumps({"cost": options.cost, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
