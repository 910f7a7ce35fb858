"""What the memory manager's operations cost a block as the pool grows from a thousand blocks to a million.

    python benchmarks/memory_scale.py [--blocks 1000 10000 100000 1000000] [--eviction lru prefix ...] [--json FILE]

Blocks hold 16 tokens. The pool is filled with cached prefixes of 10 blocks each (100,000 of them at a million blocks),
no two alike, and then, in this order: ``match`` looks all tokens of a cached prompt up; ``share`` takes the match and
``release`` gives it back; ``evict`` reserves blocks for a new prompt, which are all taken from cached prefixes;
``publish`` files that prompt's blocks; ``allocate`` reserves blocks of a pool with nothing cached. What is measured is
the manager's own methods as the scheduler calls them, in seconds of CPU time over blocks, the median of several rounds
over prompts in random order. Python's garbage collector stays on.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

from octavo.config import EVICTIONS, SchedulerConfig
from octavo.memory import MemoryManager
from octavo.request import Request, SamplingParams, Sequence

BLOCK_SIZE = 16
PREFIX_BLOCKS = 10
NUM_TOKENS = BLOCK_SIZE * PREFIX_BLOCKS
BATCH = 50
"""Prompts of one timed stretch."""

Costs = dict[str, list[float]]


def sequence(number: int) -> Sequence:
    """A prompt like no other, and one token more, for the last one is never shared."""
    rng = random.Random(number)
    tokens = [number & 0xFFFF, number >> 16, *rng.choices(range(32_000), k=NUM_TOKENS - 1)]
    return Sequence(number, Request(str(number), tokens, SamplingParams(), max_new_tokens=1), 0, tokens)


def timed(costs: Costs, name: str, began: float, count: int) -> None:
    """Note seconds a block."""
    costs[name].append((time.process_time() - began) / (count * PREFIX_BLOCKS))


def compute(memory: MemoryManager, sequences: list[Sequence], costs: Costs, taking: str) -> None:
    """Reserve, publish and free, as if each prompt were computed and ended."""
    began = time.process_time()
    for seq in sequences:
        memory.reserve(seq, NUM_TOKENS)
    timed(costs, taking, began, len(sequences))
    memory.evicted.clear()
    for seq in sequences:
        seq.num_scheduled = seq.num_computed = NUM_TOKENS
    began = time.process_time()
    for seq in sequences:
        memory.publish(seq)
    timed(costs, "publish", began, len(sequences))
    began = time.process_time()
    for seq in sequences:
        memory.free(seq)
    timed(costs, "release", began, len(sequences))


def reuse(memory: MemoryManager, sequences: list[Sequence], costs: Costs) -> None:
    """Match, share and free."""
    began = time.process_time()
    matches = [memory.match(seq) for seq in sequences]
    timed(costs, "match", began, len(sequences))
    if any(len(nodes) != PREFIX_BLOCKS for nodes in matches):
        raise RuntimeError("a cached prefix was not found")
    began = time.process_time()
    for seq, nodes in zip(sequences, matches, strict=True):
        memory.share(seq, nodes)
    timed(costs, "share", began, len(sequences))
    began = time.process_time()
    for seq in sequences:
        memory.free(seq)
    timed(costs, "release", began, len(sequences))


def measure(num_blocks: int, eviction: str, rounds: int) -> dict[str, float]:
    """Microseconds a block of each operation."""
    memory = MemoryManager(SchedulerConfig(num_blocks=num_blocks, block_size=BLOCK_SIZE, eviction=eviction))
    num_prefixes, costs, rng = num_blocks // PREFIX_BLOCKS, defaultdict[str, list[float]](list), random.Random(0)
    filling: Costs = defaultdict(list)
    batch = min(BATCH, num_prefixes // 4)
    for start in range(0, num_prefixes, batch):
        group = [sequence(number) for number in range(start, min(start + batch, num_prefixes))]
        compute(memory, group, filling, "allocate")
    costs["allocate"] = filling["allocate"][-rounds:]  # the trie is large by then
    gc.collect()
    for _ in range(rounds):
        reuse(memory, [sequence(number) for number in rng.sample(range(num_prefixes), batch)], costs)
    for start in range(num_prefixes, num_prefixes + rounds * batch, batch):
        compute(memory, [sequence(number) for number in range(start, start + batch)], costs, "evict")
    return {name: round(statistics.median(values) * 1e6, 3) for name, values in sorted(costs.items())}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--eviction", nargs="+", default=list(EVICTIONS), choices=EVICTIONS)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    results = []
    for eviction in options.eviction:
        by_size = {}
        for num_blocks in options.blocks:
            by_size[num_blocks] = costs = measure(num_blocks, eviction, options.rounds)
            line = ", ".join(f"{name} {value:.2f}" for name, value in costs.items())
            print(f"{eviction:>6} {num_blocks:>9,} blocks: {line} microseconds a block", flush=True)
        first, last = by_size[options.blocks[0]], by_size[options.blocks[-1]]
        growth = {name: round(last[name] / first[name], 2) for name in first}
        print(f"{eviction:>6} growth: " + ", ".join(f"{name} {value:.2f}x" for name, value in growth.items()))
        results.append({"eviction": eviction, "microseconds_a_block": by_size, "growth": growth})
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({**machine, "block_size": BLOCK_SIZE, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
