"""Who goes first. A rank is a constant of the request, so that waiting requests can sit in a heap."""

from __future__ import annotations

from collections.abc import Callable

from octavo.config import SchedulerConfig
from octavo.request import Request

Rank = tuple[float, int]
"""Smaller goes first; the second member (order of arrival at the scheduler) makes ranks unique."""


def fcfs(request: Request, config: SchedulerConfig, order: int) -> Rank:
    """First come, first served."""
    return (request.arrival, order)


def priority(request: Request, config: SchedulerConfig, order: int) -> Rank:
    """Lower numbers first, with ageing: linear ageing at one rate never changes the order of two requests, so a
    level of priority is worth a head start of ``ageing_seconds``, and nobody starves."""
    return (request.arrival + request.priority * config.ageing_seconds, order)


POLICIES: dict[str, Callable[[Request, SchedulerConfig, int], Rank]] = {"fcfs": fcfs, "priority": priority}
