"""The four steps of the ladder, from allocating blocks to Octavo as it is. Each is a plain configuration of the same
parts: what differs is in this table, and nothing else knows of it."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # Blocks and tables, and nothing more: requests are let in without a look at memory, and fail in mid-run.
    "v1-naive": {"policy": "fcfs", "victims": "none", "prefix_caching": False},
    # Short of blocks, whoever computed least recently loses all of its own and recomputes.
    "v2-lru": {"policy": "fcfs", "victims": "lru", "preemption": "recompute", "prefix_caching": False},
    # Rank decides who goes first and who loses blocks; urgent requests preempt others.
    "v3-priority": {"policy": "priority", "victims": "rank", "prefix_caching": False},
    # Freed blocks keep their content for prompts that begin alike, least recently used given up first.
    "v4-prefix": {"policy": "priority", "victims": "rank", "prefix_caching": True, "eviction": "lru"},
}
"""Fields that :class:`~octavo.config.EngineConfig` and :class:`~octavo.config.SchedulerConfig` have in common."""
