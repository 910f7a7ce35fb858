"""exp001: which cached blocks leave first, and what is found again.

    python experiments/exp001_lru/run.py [--vllm-python PATH] [--mooncake TRACE.jsonl.gz]

Writes ``results.json`` and ``results.md`` beside this file. README.md explains every difference.
"""

from __future__ import annotations

import random
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from beside_vllm.mooncake import mooncake_stream
from beside_vllm.report import main
from beside_vllm.stream import Arrival, Stream, ask, text


def streams() -> list[Stream]:
    """The small streams, then the random ones."""
    return [
        Stream(
            "in turn",
            "Three requests one after the other fill the cache; a fourth needs room. Who used what longest ago goes "
            "first, and of one request the tail before the head.",
            num_blocks=12,
            arrivals=(
                ask("A", 0, text("A", 13)),
                ask("B", 3, text("B", 13)),
                ask("C", 6, text("C", 13)),
                ask("D", 9, text("D", 13)),
                ask("A2", 12, text("A", 13)),
            ),
        ),
        Stream(
            "a hit renews",
            "As before, but A is used again before D comes: now B is the oldest.",
            num_blocks=10,
            arrivals=(
                ask("A", 0, text("A", 13)),
                ask("B", 3, text("B", 13)),
                ask("A2", 6, text("A", 13)),
                ask("C", 9, text("C", 13)),
                ask("D", 12, text("D", 13)),
                ask("A3", 15, text("A", 13)),
            ),
        ),
        Stream(
            "a shared head outlives its tails",
            "Three requests begin alike. The head is in use as long as any of them, so tails go first.",
            num_blocks=10,
            arrivals=(
                ask("A", 0, text("H", 8) + text("A", 5)),
                ask("B", 3, text("H", 8) + text("B", 5)),
                ask("C", 6, text("H", 8) + text("C", 5)),
                ask("D", 9, text("D", 25)),
                ask("E", 12, text("H", 8) + text("E", 5)),
            ),
        ),
        Stream(
            "the whole prompt is cached",
            "A prompt of exactly three blocks comes three times. Its last token has to be computed again, for its "
            "logits; blocks are what is shared, so the whole last block is.",
            num_blocks=10,
            arrivals=(
                ask("A", 0, text("A", 12), 3),
                ask("A2", 5, text("A", 12), 3),
                ask("A3", 10, text("A", 12), 3),
                ask("B", 15, text("B", 33)),
                ask("A4", 18, text("A", 12), 3),
            ),
        ),
        Stream(
            "a conversation",
            "Each turn's prompt is the turn before, its answer, and something new: answers are found again, too.",
            num_blocks=12,
            arrivals=conversation(),
        ),
        random_stream("random, one at a time", seed=1, every=6, num_seqs=1),
        random_stream("random, one at a time, no prompt wholly cached", seed=1, every=6, num_seqs=1, own=1),
        random_stream("random, eight at once", seed=2, every=1, num_seqs=8),
        random_stream("random, eight at once, short of memory", seed=3, every=1, num_seqs=8, num_blocks=40),
    ]


def conversation() -> tuple[Arrival, ...]:
    """Four turns, with a stranger between the third and the fourth."""
    arrivals: list[Arrival] = []
    prompt: tuple[int, ...] = text("S", 6)
    for turn in range(4):
        output = tuple(600_000 + turn * 100 + i for i in range(6))
        arrivals.append(Arrival(f"T{turn}", turn * 10, prompt, (output,)))
        prompt += output + text("abcd"[turn], 3)
    return (*arrivals[:3], ask("X", 28, text("X", 9)), arrivals[3])


def random_stream(name: str, *, seed: int, every: int, num_seqs: int, num_blocks: int = 64, own: int = 0) -> Stream:
    """60 requests over a dozen stems of which some are far likelier than others (Zipf); each ends in ``own`` tokens or
    more that nobody else has."""
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(1000) for _ in range(rng.randrange(4, 60))) for _ in range(12)]
    arrivals = []
    for i in range(60):
        stem = rng.choices(stems, [1 / (place + 1) for place in range(len(stems))])[0]
        prompt = stem[: rng.randrange(1, len(stem) + 1)] + tuple(rng.randrange(1000) for _ in range(rng.randrange(9)))
        prompt += tuple(1000 + i for _ in range(own))
        output = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 12)))
        arrivals.append(Arrival(f"r{i}", i * every, prompt, (output,)))
    return Stream(
        name,
        f"60 requests over twelve stems, seed {seed}.",
        num_blocks=num_blocks,
        max_num_seqs=num_seqs,
        arrivals=tuple(arrivals),
    )


MOONCAKE = partial(mooncake_stream, story="A cache that holds a fraction.", requests=1000, num_blocks=1000)
"""Real traffic in a cache of a thousand blocks."""


if __name__ == "__main__":
    main(Path(__file__).parent, __doc__ or "", streams(), MOONCAKE)
