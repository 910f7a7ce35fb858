"""Who goes first: one small interface, and a policy in each file."""

from collections.abc import Callable

from octavo.config import SchedulerConfig
from octavo.scheduler.rank.constant import Fcfs, Priority
from octavo.scheduler.rank.fair import Fair
from octavo.scheduler.rank.policy import RankPolicy
from octavo.scheduler.rank.srpt import Srpt
from octavo.scheduler.rank.waiting import Rank, Waiting

__all__ = ["POLICIES", "Rank", "RankPolicy", "Waiting"]

POLICIES: dict[str, Callable[[SchedulerConfig], RankPolicy]] = {
    "fcfs": Fcfs,
    "priority": Priority,
    "srpt": Srpt,
    "fair": Fair,
}
"""The policies that ``EngineConfig.policy`` names."""
