"""Ranks that a request brings with it."""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.scheduler.rank.policy import RankPolicy
from octavo.scheduler.rank.waiting import Rank


class Fcfs(RankPolicy):
    """First come, first served."""

    def rank(self, request: Request, order: int) -> Rank:
        """The time of arrival."""
        return (request.arrival, order)


class Priority(RankPolicy):
    """Lower numbers first, with ageing: linear ageing at one rate never changes the order of two requests, so a level
    of priority is worth a head start of ``ageing_seconds``. Nothing starves: at priority ``p`` a request is overtaken
    only by those that arrive within ``(p - least p) * ageing_seconds`` after it."""

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._level = config.ageing_seconds

    def rank(self, request: Request, order: int) -> Rank:
        """The time of arrival, less the head start."""
        return (request.arrival + request.priority * self._level, order)
