"""What a step's rows cost on this machine, found out by computing some."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from statistics import median

from octavo.config import EngineConfig
from octavo.plan import Chunk, Executor, SamplingSpec, SlotInit, StepPlan, Want

_CONTEXT = 128
"""Tokens that the rows look back on: what attention adds beyond is small beside the weights."""

_ROUNDS, _SECONDS = 2, 0.04
"""So often every number of rows is tried at least, and for so long where steps are short."""

_ROWS = 64
"""Where more sequences than this may decode together, what further rows add is taken to be what the last ones did."""


_MOST_ROUNDS = 50


def step_costs(executor: Executor, config: EngineConfig) -> tuple[float, ...]:
    """What decode steps of 1, 2, 4, ... rows of one sequence take, up to as many as drafts or sequences make, relative
    to the first: medians of a few each, sampling included, in turn with steps of one row, as drafts come in turn with
    steps without. () where there is no room for two rows.

    The KV memory is written to, so nobody may be using it yet.
    """
    facts, size = executor.facts, config.block_size
    held = facts.num_blocks // len(facts.groups)
    most = min(config.max_num_batched_tokens, facts.max_model_len, held * size)
    context = min(_CONTEXT, most // 2)
    numbers = [1]
    wanted = max(1 + config.speculative_tokens, min(config.max_num_seqs, _ROWS))
    while numbers[-1] < wanted and context + 2 * numbers[-1] <= most:
        numbers.append(2 * numbers[-1])
    if context < 1 or len(numbers) < 2:
        return ()
    width = -(-(context + numbers[-1]) // size)
    tables = tuple(tuple(range(g * width, (g + 1) * width)) for g in range(len(facts.groups)))
    tokens = tuple(i % facts.vocab_size for i in range(context + numbers[-1]))
    init = SlotInit(0, 0, "", 0, 0, context, tokens[: context + 1], SamplingSpec(temperature=0.0))
    kept = (width,) * len(tables)
    nothing: tuple[tuple[int, ...], ...] = ((),) * len(tables)
    prompt = Chunk(0, 0, 0, context, tokens[:context], (0,) * len(tables), tables, context, Want.NONE, ())
    executor.collect(executor.submit(StepPlan(0, (prompt,), init=(init,))))
    steps = itertools.count(1)

    def seconds(count: int) -> float:
        drafted = tokens[context : context + count]
        chunk = Chunk(0, 0, context, count, drafted, kept, nothing, context, Want.SAMPLE, (0,), count - 1)
        return executor.collect(executor.submit(StepPlan(next(steps), (chunk,)))).elapsed

    singles: list[float] = []
    several = []
    for count in numbers[1:]:
        seconds(count)  # to warm up
        times: list[float] = []
        while len(times) < _ROUNDS or (sum(times) < _SECONDS and len(times) < _MOST_ROUNDS):
            singles.append(seconds(1))
            times.append(seconds(count))
        several.append(median(times))
    executor.collect(executor.submit(StepPlan(next(steps), (), released=(0,))))
    return relative([median(singles), *several])


def relative(seconds: Sequence[float]) -> tuple[float, ...]:
    """Measured seconds of 1, 2, 4, ... rows as costs. Whatever else the machine did meanwhile made steps longer, never
    shorter: so what more rows were done in bounds what fewer take, and twice the rows take no more than twice as long.
    """
    costs = [1.0]
    for i in range(1, len(seconds)):
        costs.append(min(max(1.0, min(seconds[i:]) / seconds[0]), 2 * costs[-1]))
    return tuple(costs)
