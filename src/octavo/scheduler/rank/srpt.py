"""Shortest remaining first."""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.scheduler.rank.policy import RankPolicy
from octavo.scheduler.rank.waiting import Rank

AGEING_TOKENS = 1000
"""Waiting for ``ageing_seconds`` weighs as much as so many tokens."""


class Srpt(RankPolicy):
    """Shortest remaining first: by the tokens of the prompt not computed yet and the new tokens still allowed, over
    all the request's sequences. ``max_tokens`` stands for the length that nobody knows, so it pays to set it. With
    ageing: :data:`AGEING_TOKENS` of work weigh as much as an arrival ``ageing_seconds`` earlier.
    (Least remaining work minimises the mean time in the system: Schrage, 1968.)

    A rank never rises: what a preemption costs is not counted as work again, and while a request waits nothing of it
    changes. Hence two things. Whoever was preempted by a request ranks behind it until that one is preempted itself,
    or ended: they do not take turns. And ranks fall only with progress that is never lost, of which there is a finite
    amount; between two such moments the order stands still, and the first in order always goes on.

    Nothing starves: no request has more than ``W`` tokens of work, so its rank is at most its arrival plus
    ``W / AGEING_TOKENS * ageing_seconds``, and whoever arrives later than that ranks behind it.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._seconds_per_token = config.ageing_seconds / AGEING_TOKENS

    def rank(self, request: Request, order: int) -> Rank:
        """All of its work."""
        return self._rank(request, order)

    def refresh(self, running: list[Request]) -> None:
        """They have come forward."""
        for request in running:
            request.rank = min(request.rank, self._rank(request, request.rank[1]))
        running.sort(key=_rank_of)

    def _rank(self, request: Request, order: int) -> Rank:
        return (request.arrival + remaining_work(request) * self._seconds_per_token, order)


def remaining_work(request: Request) -> int:
    """Tokens that are still to be computed for the request, as the plans in flight will leave it: of the prompt, and
    new ones up to ``max_tokens`` for each of its sequences, those not forked yet included."""
    live = request.live
    if not live:  # it has only arrived
        return len(request.prompt_token_ids) + request.num_slots * request.max_new_tokens
    first = live[0]
    work = max(0, first.num_prompt - first.num_scheduled) + (request.num_slots - len(live)) * request.max_new_tokens
    return work + sum(seq.limit - seq.num_total for seq in live)


def _rank_of(request: Request) -> Rank:
    return request.rank
