"""Random crowds through the whole engine: everybody gets what it would have got alone, in whatever company."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from engine_case import assert_clean, finish, oracle_engine

from octavo import LLMEngine, RequestOutput, SamplingParams

CASES, BATCH = 60, 10


def random_params(rng: random.Random, text: str) -> SamplingParams:
    kind = rng.random()
    most = rng.choice([1, 3, 8, 20, 30])
    if kind < 0.15:
        return SamplingParams(n=rng.randint(1, 3), beam_width=3, max_tokens=most, stop_token_ids=list(range(40)))
    keywords: dict[str, Any] = {"max_tokens": most}
    if kind < 0.5 and len(text) > 6:
        at = rng.randrange(len(text) - 3)
        keywords["stop"] = [text[at : at + rng.randint(1, 3)], "\ufffd\ufffd"][: rng.randint(1, 2)]
        keywords["include_stop_str_in_output"] = rng.random() < 0.5
    if rng.random() < 0.3:
        keywords["min_tokens"] = rng.randint(0, most)
    if rng.random() < 0.3:
        keywords["stop_token_ids"] = rng.sample(range(384), 20)
    n = rng.choice([1, 1, 1, 2, 3])
    if rng.random() < 0.2:
        keywords["best_of"] = n + 2
    elif rng.random() < 0.3:
        keywords["logprobs"] = 0
    if rng.random() < 0.1:
        keywords["prompt_logprobs"] = 0
    return SamplingParams(n=n, **keywords)


def essence(output: RequestOutput) -> tuple[Any, ...]:
    """All but the times and what memory did."""
    return (output.prompt_token_ids, output.outputs, output.prompt_logprobs, output.error, output.finished)


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_nobody_notices_the_others(tiny_llama: Path, first: int) -> None:
    with oracle_engine(tiny_llama, num_blocks=400, max_num_batched_tokens=500) as alone:
        for seed in range(first, first + BATCH):
            crowd(tiny_llama, alone, seed)


def crowd(folder: Path, alone: LLMEngine, seed: int) -> None:
    rng = random.Random(seed)
    stem = rng.choices(range(384), k=30)
    asked: list[tuple[list[int], SamplingParams]] = []
    for _ in range(rng.randint(2, 14)):
        prompt = stem[: rng.randint(1, 30)] + rng.choices(range(384), k=rng.randint(0, 5))
        text = alone.generate([prompt], max_tokens=20)[0].text
        asked.append((prompt, random_params(rng, text)))
    expected = []
    for prompt, params in asked:
        alone.reset_prefix_cache()
        expected.append(alone.generate([prompt], params)[0])
    config = {
        "num_blocks": rng.choice([60, 75, 120, 200]),
        "max_num_seqs": rng.choice([5, 8, 16]),
        "max_num_batched_tokens": rng.choice([5, 16, 64]),
        "policy": rng.choice(["fcfs", "priority"]),
        "depth": rng.choice([0, 1]),
        "prefix_caching": rng.random() < 0.7,
        "batching": rng.choice(["continuous", "continuous", "static"]),
    }
    with oracle_engine(folder, **config) as engine:
        priority = config["policy"] == "priority"
        names: list[str] = []
        ended: dict[str, RequestOutput] = {}
        waiting = list(asked)
        shown: dict[tuple[str, int], str] = {}
        while waiting or engine.has_unfinished():
            while waiting and rng.random() < 0.4:
                urgency = rng.randint(-2, 2) if priority else 0
                names.append(engine.add_request(*waiting.pop(0), priority=urgency))
            for output in engine.step():
                if output.finished:
                    ended[output.request_id] = output
                for each in output.outputs if len(output.outputs) == 1 else ():
                    assert each.text.startswith(shown.get((output.request_id, each.index), "")) or output.finished
                    shown[output.request_id, each.index] = each.text
        for name, (_, params), truth in zip(names, asked, expected, strict=True):
            assert essence(ended[name]) == essence(truth), (seed, name, params)
        assert finish(engine) == {}
        assert_clean(engine)
