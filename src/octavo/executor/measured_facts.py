"""What the scheduler wants to know of a machine and only a run can tell: added to an executor's facts at its start."""

from __future__ import annotations

from dataclasses import replace

import torch

from octavo.config import EngineConfig
from octavo.executor.prefill_speed import prefill_speed
from octavo.executor.step_costs import step_costs
from octavo.executor.swap_space import Swaps, measure_bandwidth
from octavo.plan import Executor, ModelFacts


def measured_facts(executor: Executor, config: EngineConfig, swaps: Swaps, cache: torch.Tensor) -> ModelFacts:
    """``executor.facts``, with what the configuration asks to be chosen by measurement, and a note of each.

    The KV memory is written to, so nobody may be using it yet.

    Args:
        executor: complete but for this.
        config: what it was made with.
        swaps: what moves blocks between device and host memory.
        cache: the device's, uint8 ``[num_blocks, page_bytes]``.
    """
    facts = executor.facts
    if swaps.num_blocks and config.preemption == "auto":  # the choice between swapping and recomputing
        link = config.link_bandwidth or measure_bandwidth(swaps, cache)
        speed = config.compute_speed or prefill_speed(executor, config)
        note = f"swapping at {link / 1e9:.1f} GB/s, recomputing at {speed / 1e9:,.0f} GFLOP/s"
        facts = replace(facts, link_bandwidth=link, compute_speed=speed, notes=(*facts.notes, note))
    if config.speculative is not None and config.row_cost is None:  # how many guesses are made
        costs = step_costs(executor, config)
        if costs:
            note = f"a step of {1 << len(costs) - 1} rows takes {costs[-1]:.2f} times as long as one of one"
            facts = replace(facts, step_costs=costs, notes=(*facts.notes, note))
    return facts
