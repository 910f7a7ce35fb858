"""What it costs to give up a request's memory and have it back: by moving it, or by computing it again.

(vLLM's first scheduler had both ways too, and chose by rule: recompute one sequence, swap several. Here the numbers
decide: bytes over the link's bandwidth against FLOPs over the speed of a prefill.)
"""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.memory import Departure


def swap_seconds(config: SchedulerConfig, num_pages: int) -> float:
    """Seconds to move so many pages out and back in."""
    return 2 * num_pages * config.page_bytes / config.link_bandwidth


def recompute_seconds(config: SchedulerConfig, start: int, end: int) -> float:
    """Seconds to compute the KV of positions ``start`` to ``end`` anew: the layers' products, and attention to all that
    lies before each position (in a windowed group, to what the window shows).

    That a prompt may be found in the prefix tree again is not counted on: memory is short when requests are preempted,
    so what one gives up is what another is about to overwrite.
    """
    flops = (end - start) * config.flops_per_token
    for group in config.groups:
        flops += (group.pairs(end) - group.pairs(start)) * group.num_layers * config.attention_flops
    return flops / config.compute_speed


def prefers_swap(config: SchedulerConfig, departure: Departure) -> bool:
    """Whether moving what ``departure`` names is the cheaper way (forced by ``config.preemption``); an even match goes
    to recomputing, which takes no host memory."""
    if config.preemption != "auto":
        return config.preemption == "swap"
    again = sum(recompute_seconds(config, start, end) for start, end in departure.spans)
    return swap_seconds(config, departure.num_pages) < again
