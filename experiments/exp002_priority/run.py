"""exp002: who runs, who waits and who loses its blocks when memory is short, by arrival and by priority.

    python experiments/exp002_priority/run.py [--vllm-python PATH] [--mooncake TRACE.jsonl.gz]

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
            "by priority, memory for all",
            "Six requests wait for two seats; lower numbers go first, equals in the order of arrival.",
            num_blocks=40,
            max_num_seqs=2,
            policy="priority",
            arrivals=tuple(
                ask(name, 0, text(name, 6), 3, priority=priority)
                for name, priority in zip("ABCDEF", (5, 1, 3, 1, 0, 5), strict=True)
            ),
        ),
        Stream(
            "urgent, and every seat is taken",
            "A and B hold both seats for twenty steps when U comes, more urgent than either.",
            num_blocks=40,
            max_num_seqs=2,
            policy="priority",
            arrivals=(
                ask("A", 0, text("A", 6), 20, priority=5),
                ask("B", 0, text("B", 6), 20, priority=6),
                ask("U", 4, text("U", 6), 3, priority=0),
            ),
        ),
        Stream(
            "urgent, and memory is full",
            "A and B hold all but one block when U comes, more urgent than either. It needs three blocks; taking B's "
            "is enough.",
            num_blocks=10,
            policy="priority",
            arrivals=(
                ask("A", 0, text("A", 13), 12, priority=5),
                ask("B", 0, text("B", 13), 12, priority=6),
                ask("U", 4, text("U", 10), 2, priority=0),
            ),
        ),
        Stream(
            "urgent, but taking would not help",
            "U needs more than all that rank below it hold, for A, who ranks above, holds the rest. Nobody should "
            "lose anything for nothing.",
            num_blocks=10,
            policy="priority",
            arrivals=(
                ask("A", 0, text("A", 21), 12, priority=0),
                ask("B", 0, text("B", 5), 12, priority=6),
                ask("U", 3, text("U", 17), 2, priority=1),
            ),
        ),
        Stream(
            "the urgent one grows",
            "Both run; A, admitted first, is the less urgent one. B's output outgrows the pool.",
            num_blocks=8,
            policy="priority",
            arrivals=(ask("A", 0, text("A", 13), 8, priority=5), ask("B", 1, text("B", 13), 8, priority=0)),
        ),
        Stream(
            "the last one grows",
            "B, who ranks last, wants a block when none is left. A leaves two steps later.",
            num_blocks=9,
            arrivals=(ask("A", 0, text("A", 16), 5), ask("B", 0, text("B", 15), 8)),
        ),
        Stream(
            "too many are let in",
            "Eight short prompts that grow long: they fit at first, and do not fit when they have grown.",
            num_blocks=18,
            arrivals=tuple(ask(name, 0, text(name, 5), 20) for name in "ABCDEFGH"),
        ),
        Stream(
            "too many are let in, vLLM with a watermark",
            "The same, with a third of the pool kept free by vLLM at admission.",
            num_blocks=18,
            vllm={"watermark": 0.33},
            arrivals=tuple(ask(name, 0, text(name, 5), 20) for name in "ABCDEFGH"),
        ),
        Stream(
            "prompts computed in parts",
            "Four prompts of 40 tokens, 16 tokens a step, memory for two of them. A prompt that is admitted has not "
            "yet taken the blocks of its later parts.",
            num_blocks=24,
            max_num_batched_tokens=16,
            arrivals=tuple(ask(name, 0, text(name, 40), 8) for name in "ABCD"),
        ),
        Stream(
            "a long prompt beside decodes",
            "A and B decode when L comes with 100 tokens of prompt; 16 tokens fit a step.",
            num_blocks=60,
            max_num_batched_tokens=16,
            arrivals=(ask("A", 0, text("A", 5), 16), ask("B", 0, text("B", 5), 16), ask("L", 3, text("L", 100), 4)),
        ),
        Stream(
            "a large one at the head of the line",
            "L does not fit while A runs. B and C would, but came after it.",
            num_blocks=10,
            arrivals=(
                ask("A", 0, text("A", 17), 10),
                ask("L", 1, text("L", 25), 2),
                ask("B", 2, text("B", 5), 2),
                ask("C", 2, text("C", 5), 2),
            ),
        ),
        Stream(
            "starvation",
            "One seat. Z waits, at priority 1, while a new request of priority 0 comes every other step.",
            num_blocks=40,
            max_num_seqs=1,
            policy="priority",
            arrivals=queue_behind_urgent(),
        ),
        Stream(
            "starvation, with ageing",
            "The same; Octavo's level of priority is now worth six steps of waiting. vLLM has no such thing.",
            num_blocks=40,
            max_num_seqs=1,
            policy="priority",
            ageing_seconds=6.0,
            arrivals=queue_behind_urgent(),
        ),
        random_stream("random, by arrival", 11, "fcfs", 40),
        random_stream("random, by arrival, much memory", 11, "fcfs", 400),
        random_stream("random, by priority", 12, "priority", 40),
        random_stream("random, by priority, much memory", 12, "priority", 400),
        Stream(
            "a cap on long prompts",
            "vLLM alone gets long_prefill_token_threshold=8, so that the parts of a long prompt and the decodes of a "
            "request admitted later meet in one step. U's second token wants a block when L's third part is planned.",
            num_blocks=9,
            max_num_batched_tokens=32,
            policy="priority",
            vllm={"long_prefill_token_threshold": 8},
            arrivals=(
                ask("X", 0, text("X", 1), 3, priority=1),
                ask("L", 0, text("L", 29), 2, priority=5),
                ask("U", 1, text("U", 8), 3, priority=0),
            ),
        ),
    ]


def queue_behind_urgent() -> tuple[Arrival, ...]:
    """Z waits behind one urgent request after another."""
    urgent = (ask(f"u{i}", 1 + 2 * i, text("U", 5), 2) for i in range(12))
    return (ask("A", 0, text("A", 5), 2), ask("Z", 1, text("Z", 5), 2, priority=1), *urgent)


def random_stream(name: str, seed: int, policy: str, num_blocks: int) -> Stream:
    """40 requests of random lengths and priorities."""
    rng = random.Random(seed)
    arrivals = []
    for i in range(40):
        prompt = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 40)))
        output = tuple(rng.randrange(1000) for _ in range(rng.randrange(1, 25)))
        arrivals.append(Arrival(f"r{i}", rng.randrange(60), prompt, (output,), priority=rng.randrange(4)))
    arrivals.sort(key=lambda arrival: arrival.step)
    return Stream(
        name,
        f"40 requests that have nothing in common, seed {seed}, {num_blocks} blocks.",
        num_blocks=num_blocks,
        max_num_seqs=8,
        max_num_batched_tokens=32,
        policy=policy,
        arrivals=tuple(arrivals),
    )


MOONCAKE = partial(mooncake_stream, story="Short of memory.", requests=500, num_blocks=300)
"""Real traffic, and too little memory for it."""


if __name__ == "__main__":
    main(Path(__file__).parent, __doc__ or "", streams(), MOONCAKE)
