"""How fast this machine computes a prefill, found out by computing one."""

from __future__ import annotations

from octavo.config import EngineConfig
from octavo.plan import Chunk, Executor, SamplingSpec, SlotInit, StepPlan, Want

_TOKENS = 256
"""Enough for matrix products to run at speed."""


def prefill_speed(executor: Executor, config: EngineConfig) -> float:
    """FLOP a second of a prefill of up to 256 tokens: the better of two runs, after one to warm up.

    The KV memory is written to, so nobody may be using it yet.
    """
    facts, size = executor.facts, config.block_size
    held = facts.num_blocks // len(facts.groups)
    count = min(_TOKENS, config.max_num_batched_tokens, facts.max_model_len, held * size)
    width = -(-count // size)
    tables = tuple(tuple(range(g * width, (g + 1) * width)) for g in range(len(facts.groups)))
    tokens = tuple(i % facts.vocab_size for i in range(count))
    init = SlotInit(0, 0, "", 0, 0, count, tokens, SamplingSpec())
    chunk = Chunk(0, 0, 0, count, tokens, (0,) * len(tables), tables, count, Want.NONE, ())
    seconds = []
    for step in range(3):
        plan = StepPlan(step, (chunk,), init=(init,), released=(0,) if step else ())
        seconds.append(executor.collect(executor.submit(plan)).elapsed)
    executor.collect(executor.submit(StepPlan(3, (), released=(0,))))
    flops = count * facts.flops_per_token
    flops += sum(group.pairs(count) * group.num_layers for group in facts.groups) * facts.attention_flops
    return flops / min(seconds[1:])
