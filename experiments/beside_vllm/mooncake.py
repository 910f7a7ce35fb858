"""A slice of the Mooncake conversation trace (FAST '25 release), made small enough to follow slot by slot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from beside_vllm.stream import Arrival, Stream

SHRINK = 32
"""A block of the trace (512 tokens) becomes one of 16; lengths shrink alike."""

TRACE_BLOCK = 512
BLOCK = TRACE_BLOCK // SHRINK


SECONDS_A_STEP = 0.4
"""How much of the trace's time goes by in a step."""


def mooncake_stream(trace: Path, *, story: str, requests: int, num_blocks: int) -> Stream:
    """The first ``requests`` of the trace. Equal block ids become equal tokens; the last id of a request covers a
    partial block, so its tokens are the request's own.

    Raises:
        OSError: the trace cannot be read. KeyError, ValueError: it is not a Mooncake trace.
    """
    arrivals = []
    with gzip.open(trace, "rt") if trace.suffix == ".gz" else trace.open() as lines:
        for number, line in zip(range(requests), lines, strict=False):
            row = json.loads(line)
            *full, _ = row["hash_ids"]
            rest = max(1, (row["input_length"] - TRACE_BLOCK * len(full)) // SHRINK)
            prompt = [block * BLOCK + i for block in full for i in range(BLOCK)]
            own = (1 << 28) + number * 4096
            prompt += range(own, own + rest)
            length = max(1, row["output_length"] // SHRINK)
            arrivals.append(
                Arrival(
                    f"m{number}",
                    int(row["timestamp"] / 1000 / SECONDS_A_STEP),
                    tuple(prompt),
                    (tuple(range(own + 2048, own + 2048 + length)),),
                )
            )
    return Stream(
        "Mooncake",
        f"{story} The first {requests} requests of the Mooncake conversation trace, lengths and blocks {SHRINK} times "
        f"smaller, {SECONDS_A_STEP} s of the trace a step.",
        arrivals=tuple(arrivals),
        block_size=BLOCK,
        num_blocks=num_blocks,
        max_num_seqs=64,
        max_num_batched_tokens=512,
    )
