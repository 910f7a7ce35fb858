"""Prefix-cache hit rates of every eviction policy over capacities, request by request (no scheduler, no time).

    python benchmarks/cache_policies.py TRACE [--capacities 1000,2000,5000,10000,20000,50000] [--json FILE]

TRACE is one with hash_ids: the Mooncake conversation (github.com/kvcache-ai/Mooncake, FAST25-release), whose numbers
are known, or another. A cell is the share of blocks that hit.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from octavo.simulator.cache_lab import LAB_POLICIES, run_cache
from octavo.simulator.trace_reader import read_trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--capacities", default="1000,2000,5000,10000,20000,50000")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trace = read_trace(options.trace)
    capacities = [int(entry) for entry in options.capacities.split(",")]
    unlimited = run_cache(trace)
    print(f"{trace.name}: {len(trace.requests):,} requests, {unlimited.num_blocks:,} blocks of {trace.piece} tokens")
    print(f"never evicting: {unlimited.hit_rate:.2%} of blocks, {unlimited.token_hit_rate:.2%} of tokens")
    print(f"{'':8}" + "".join(f"{capacity:>9,}" for capacity in capacities) + "   seconds")
    rates: dict[str, list[float]] = {}
    for policy in LAB_POLICIES:
        began = time.perf_counter()
        rates[policy] = [run_cache(trace, policy, capacity).hit_rate for capacity in capacities]
        seconds = time.perf_counter() - began
        print(f"{policy:8}" + "".join(f"{rate:>9.4f}" for rate in rates[policy]) + f"{seconds:>10.1f}", flush=True)
    if options.json is not None:
        found = {
            "trace": trace.name,
            "requests": len(trace.requests),
            "blocks": unlimited.num_blocks,
            "piece": trace.piece,
            "unlimited": {"blocks": unlimited.hit_rate, "tokens": unlimited.token_hit_rate},
            "capacities": capacities,
            "hit_rate": rates,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
