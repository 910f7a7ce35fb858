"""What a step costs in the scheduler: schedule() plus commit() for many decoding sequences, the executor left out.

    python benchmarks/scheduler_loop.py [--sequences 256] [--context 1000] [--steps 300]

Prints the median and the spread in milliseconds. The recorder is off, the pool is large enough, block size 16.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time

from octavo.config import SchedulerConfig
from octavo.plan import ChunkResult, Sample, StepPlan, StepResult
from octavo.request import Request, SamplingParams
from octavo.scheduler import Scheduler


def result_of(plan: StepPlan) -> StepResult:
    """One token for every chunk that wants one, as an executor would bring it."""
    sampled = ChunkResult(samples=(Sample(7),))
    nothing = ChunkResult()
    return StepResult(plan.step, tuple(sampled if chunk.draws else nothing for chunk in plan.chunks))


def measure(sequences: int, context: int, steps: int) -> list[tuple[float, float]]:
    """Seconds of schedule() and of commit(), step by step, once all prompts are computed."""
    blocks = sequences * ((context + steps + 64) // 16 + 2)
    config = SchedulerConfig(num_blocks=blocks, max_num_seqs=sequences, max_num_batched_tokens=8192)
    scheduler = Scheduler(config)
    for i in range(sequences):
        prompt = [(i * 31 + j * 7) % 32_000 for j in range(context - i % 16)]  # block borders fall in different steps
        params = SamplingParams(max_tokens=steps + 64)
        scheduler.add(Request(f"r{i}", prompt, params, arrival=float(i), max_new_tokens=steps + 64, stop_ids=(2,)))
    times: list[tuple[float, float]] = []
    gc.collect()
    gc.freeze()
    while len(times) < steps:
        began = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        result = result_of(plan)
        ran = time.perf_counter()
        scheduler.commit(plan, result)
        ended = time.perf_counter()
        if len(plan.chunks) == sequences and all(chunk.count == 1 for chunk in plan.chunks):
            times.append((planned - began, ended - ran))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times = measure(options.sequences, options.context, options.steps)
    total = sorted((a + b) * 1e3 for a, b in times)
    report = {
        "sequences": options.sequences,
        "context": options.context,
        "schedule_ms": statistics.median(a for a, _ in times) * 1e3,
        "commit_ms": statistics.median(b for _, b in times) * 1e3,
        "total_ms": statistics.median(total),
        "p10_ms": total[len(total) // 10],
        "p90_ms": total[len(total) * 9 // 10],
    }
    if options.json:
        print(json.dumps(report))
        return
    print(
        f"{options.sequences} decoding sequences of about {options.context} tokens: "
        f"schedule {report['schedule_ms']:.2f} ms, commit {report['commit_ms']:.2f} ms, together "
        f"{report['total_ms']:.2f} ms a step (p10 {report['p10_ms']:.2f}, p90 {report['p90_ms']:.2f})"
    )


if __name__ == "__main__":
    main()
