"""Random traces, for whoever replays them."""

from __future__ import annotations

import random

from octavo.simulator.trace import Trace, TraceRequest


def random_trace(rng: random.Random, count: int = 30, *, piece: int = 16, longest: int = 120) -> Trace:
    """Conversations and single requests in bursts: prompts out of a growing tree of contents, ends left over."""
    parents: list[int] = []
    requests = []
    arrival = 0.0
    for _ in range(count):
        arrival += rng.choice([0.0, 0.0, 0.01, 0.1, 3.0])
        num_prompt = rng.randint(1, longest)
        contents: list[int] = []
        if rng.random() < 0.8:
            known = rng.randrange(len(parents)) if parents and rng.random() < 0.8 else -1
            while known >= 0:
                contents.insert(0, known)
                known = parents[known]
            del contents[-(-num_prompt // piece) :]
            for _ in range(-(-num_prompt // piece) - len(contents)):
                parents.append(contents[-1] if contents else -1)
                contents.append(len(parents) - 1)
        output = rng.choice([0, 1, 2, 7, 30])
        requests.append(TraceRequest(arrival, num_prompt, output, tuple(contents), priority=rng.choice([0, 0, -2, 5])))
    return Trace("made up", "mooncake", tuple(requests), piece, len(parents))
