"""exp003: what requests that begin alike share, and when.

    python experiments/exp003_prefix/run.py [--vllm-python PATH] [--mooncake TRACE.jsonl.gz]

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
    head = text("H", 16)
    return [
        Stream(
            "one after the other",
            "B comes when A is done. Both begin with the same 16 tokens, four blocks.",
            num_blocks=20,
            arrivals=(ask("A", 0, head + text("A", 3), 2), ask("B", 4, head + text("B", 3), 2)),
        ),
        Stream(
            "in one batch",
            "A, B and C come together. All begin with the same 16 tokens.",
            num_blocks=20,
            arrivals=tuple(ask(name, 0, head + text(name, 3), 3) for name in "ABC"),
        ),
        Stream(
            "in one batch, in parts",
            "A, B and C begin with the same 40 tokens, and 16 fit a step.",
            num_blocks=40,
            max_num_batched_tokens=16,
            arrivals=tuple(ask(name, 0, text("H", 40) + text(name, 3), 3) for name in "ABC"),
        ),
        Stream(
            "alone beside those who share",
            "A and B begin alike, D does not, and stands behind them in line.",
            num_blocks=20,
            arrivals=(
                ask("A", 0, head + text("A", 3), 3),
                ask("B", 0, head + text("B", 3), 3),
                ask("D", 0, text("D", 9), 3),
            ),
        ),
        Stream(
            "the one who computes gives up",
            "A and B begin alike and 16 tokens fit a step; A is withdrawn after its first part.",
            num_blocks=40,
            max_num_batched_tokens=16,
            arrivals=(
                ask("A", 0, text("H", 40) + text("A", 3), 3, withdrawn=1),
                ask("B", 0, text("H", 40) + text("B", 3), 3),
            ),
        ),
        Stream(
            "salts",
            "The same prompt four times, one after the other: without salt, under salt x, under salt y, under x again.",
            num_blocks=40,
            arrivals=tuple(
                ask(name, 4 * i, text("P", 14), 2, salt=salt)
                for i, (name, salt) in enumerate(zip("ABCD", (None, "x", "y", "x"), strict=True))
            ),
        ),
        Stream(
            "partial blocks",
            "Prompts that share 18 tokens: four blocks and half of a fifth.",
            num_blocks=20,
            arrivals=tuple(ask(name, 4 * i, text("H", 18) + text(name, 4), 2) for i, name in enumerate("ABC")),
        ),
        Stream(
            "up to the last token",
            "A prompt of 16 tokens, then one token more, then one less, then the same again, one after the other.",
            num_blocks=20,
            arrivals=tuple(
                ask(name, 4 * i, text("H", count), 2)
                for i, (name, count) in enumerate(zip("ABCD", (16, 17, 15, 16), strict=True))
            ),
        ),
        Stream(
            "the same prompt at once",
            "Four requests with the same prompt of 18 tokens come together.",
            num_blocks=40,
            arrivals=tuple(ask(name, 0, text("P", 18), 6) for name in "ABCD"),
        ),
        Stream(
            "four samples",
            "One request asks for four samples of a prompt of 18 tokens. In vLLM's core that is four requests.",
            num_blocks=40,
            arrivals=(ask("A", 0, text("P", 18), 6, samples=4),),
        ),
        Stream(
            "a middle that is alike",
            "B shares A's second half, not its first: a prefix is a prefix.",
            num_blocks=20,
            arrivals=(ask("A", 0, text("A", 8) + text("M", 8), 2), ask("B", 4, text("B", 8) + text("M", 8), 2)),
        ),
        Stream(
            "no cache",
            "Prefix caching is off.",
            num_blocks=20,
            prefix_caching=False,
            arrivals=tuple(ask(name, 2 * i, head + text(name, 3), 3) for i, name in enumerate("ABC")),
        ),
        random_stream("random, alike in many ways", 21, every=1.0),
        random_stream("random, in bursts", 22, every=0.1),
    ]


def random_stream(name: str, seed: int, *, every: float) -> Stream:
    """60 requests: stems that branch from stems, three salts."""
    rng = random.Random(seed)
    stems: list[tuple[int, ...]] = [()]
    for _ in range(15):
        stems.append(rng.choice(stems) + tuple(rng.randrange(1000) for _ in range(rng.randrange(2, 14))))
    arrivals = []
    for i in range(60):
        prompt = rng.choice(stems) + tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 6)))
        output = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 10)))
        arrivals.append(Arrival(f"r{i}", int(i * every), prompt, (output,), salt=rng.choice([None, None, "x", "y"])))
    return Stream(
        name,
        f"60 requests over a tree of stems, under three salts, seed {seed}.",
        num_blocks=120,
        max_num_seqs=12,
        arrivals=tuple(arrivals),
    )


MOONCAKE = partial(mooncake_stream, story="A cache that holds everything.", requests=1000, num_blocks=20_000)
"""Real traffic, and memory in plenty."""


if __name__ == "__main__":
    main(Path(__file__).parent, __doc__ or "", streams(), MOONCAKE)
