"""A long random run of an engine in little memory, audited at every step and compared with quiet runs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from engine_case import assert_clean, finish

from octavo import LLMEngine, RequestOutput, SamplingParams
from octavo.errors import RequestTooLargeError


def everything(output: RequestOutput) -> Any:
    """All that must not change."""
    each = [(one.token_ids, one.logprobs, one.text, one.finish_reason, one.stop_reason) for one in output.outputs]
    return each, output.prompt_logprobs


def soak(
    build: Callable[..., LLMEngine],
    reference: LLMEngine,
    seed: int,
    vocabulary: Sequence[int],
    kinds: Sequence[dict[str, Any]],
    steps: int = 120,
) -> None:
    """Requests come, are withdrawn, stop, lose their memory and get it back, at random, in little memory; the books are
    audited after each step, and every request that ran to its end is what it is alone.

    Args:
        build: makes an engine, given settings; ``batch_invariant``, and of blocks of 4 tokens.
        reference: an engine with room for all, whose results have the same bits.
        seed: of the dice.
        vocabulary: tokens of prompts.
        kinds: sampling parameters to choose from.
        steps: for the first half of which requests come.
    """
    rng = random.Random(seed)
    drafts = {"speculative": "ngram", "row_cost": 0.001}
    engine = build(
        num_blocks=rng.choice([32, 36]),
        depth=seed % 2,
        max_num_seqs=rng.choice([4, 7]),
        max_num_batched_tokens=rng.choice([9, 40]),
        max_model_len=120,
        policy="priority",
        swap_space=0.01,
        preemption=rng.choice(["swap", "recompute"]),
        eviction=rng.choice(["lru", "lfu"]),
        **(drafts if rng.random() < 0.5 else {}),
    )
    scheduler = engine.scheduler
    asked: dict[str, tuple[list[int], SamplingParams]] = {}
    ended: dict[str, RequestOutput] = {}
    stems = [random.Random(i).choices(vocabulary, k=24) for i in range(2)]
    for step in range(steps):
        if step < steps // 2 and rng.random() < 0.5:
            prompt = rng.choice(stems)[: rng.randint(1, 24)] + rng.choices(vocabulary, k=rng.randint(0, 9))
            params = SamplingParams(**({"seed": step, "max_tokens": rng.randint(6, 30)} | rng.choice(kinds)))
            with suppress(RequestTooLargeError):  # it could never fit
                asked[engine.add_request(prompt, params, priority=rng.randint(-2, 2))] = (prompt, params)
        if rng.random() < 0.03 and scheduler.requests:
            asked.pop(engine.abort_request(rng.choice(list(scheduler.requests))).request_id)
        ended |= {output.request_id: output for output in engine.step() if output.finished}
        scheduler.memory.audit(scheduler.sequences())
    ended |= finish(engine)
    assert_clean(engine)
    assert engine.stats().num_preemptions > 0
    engine.close()
    names = list(asked)
    alone = reference.generate([asked[name][0] for name in names], [asked[name][1] for name in names])
    assert [everything(ended[name]) for name in names] == [everything(output) for output in alone]
