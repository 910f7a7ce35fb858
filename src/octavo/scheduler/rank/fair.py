"""Fair shares for users: a virtual counter of tokens for each."""

from __future__ import annotations

import heapq
import math

from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.scheduler.rank.fair_queue import FairQueue
from octavo.scheduler.rank.policy import RankPolicy
from octavo.scheduler.rank.waiting import Rank

INPUT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a token of a prompt and a new token cost (the weights of the paper's experiments)."""


class Fair(RankPolicy):
    """Fair shares: of the waiting, first the user whose counter of tokens served is least; among a user's own, the
    one that came first. Requests without a user share one account.
    (Virtual Token Counter: Sheng et al., "Fairness in Serving Large Language Models", OSDI '24.)

    A user is charged for the prompt when a request is admitted, and for new tokens as they come. Who has nothing
    waiting saves nothing up: when the next request arrives, the counter is lifted to the least of the users that do
    wait, or, if nobody does, to that of the user who was admitted last.

    So the waiting stand in the order of counters that move. A rank, which must not, is a place in the order of first
    admissions: whoever is first of the waiting has the next one, and keeps it. Hence nobody is preempted only to give
    another user's share sooner; short of memory, whoever was admitted last gives way, and comes back at its old place,
    uncharged. Fixed as they are, no two such ranks take turns.

    Nothing starves. Among the users that there are, the counters see to it: an admission costs its user at least a
    token. But ever new users, beginning at the least counter as they do, could hold up one who has been served more.
    So every :data:`~octavo.scheduler.rank.fair_queue.TURNS_BY_AGE`-th admission goes to the request that has waited
    longest, which pays for it like any other: before a request with ``k`` older ones waiting, at most
    ``TURNS_BY_AGE * (k + 1)`` are admitted for the first time, whoever arrives. (Those that come back were admitted
    before, and are finitely many.) The paper bounds the difference in service between two users that both wait by
    ``2 max(INPUT_WEIGHT * longest prompt, OUTPUT_WEIGHT * tokens that fit the memory)``; turns by age shift no more
    than one request's cost on top of it, for the counters take it back.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        super().__init__(config)
        self._counters: dict[str | None, float] = {}
        self._charged: dict[str, int] = {}  # new tokens charged so far, for each live request once admitted
        self._latest: str | None = None  # the user who was admitted last
        self._num_live: dict[str | None, int] = {}
        self._idle: list[tuple[float, str]] = []  # a heap: counters, and users with nothing live
        self._queue = FairQueue(self._counters, self._charged)
        self.waiting = self._queue

    def rank(self, request: Request, order: int) -> Rank:
        """Behind everybody, until it is first of the waiting. Its user's counter is lifted if nothing of the user's
        waits."""
        user = request.user
        least = self._queue.least_counter()
        lift = self._counters.get(self._latest, 0.0) if least is None else least
        counter = self._counters.get(user, lift)
        if not self._queue.holds(user):
            counter = max(counter, lift)
        self._counters[user] = counter
        self._num_live[user] = self._num_live.get(user, 0) + 1
        self._forget_below(lift)
        return (math.inf, order)

    def refresh(self, running: list[Request]) -> None:
        """Charge what was generated since the last step; no resident's rank changes."""
        for request in running:
            self._charge_output(request)

    def admitted(self, request: Request) -> None:
        """Charge for the prompt, once."""
        if request.id not in self._charged:
            self._charged[request.id] = 0
            self._latest = request.user
            self._queue.count_admission()
            self._counters[request.user] += INPUT_WEIGHT * len(request.prompt_token_ids)

    def left(self, request: Request) -> None:
        """Charge the rest."""
        user = request.user
        if request.id in self._charged:
            self._charge_output(request)
            del self._charged[request.id]
        self._num_live[user] -= 1
        if not self._num_live[user]:
            del self._num_live[user]
            if user is not None:
                heapq.heappush(self._idle, (self._counters[user], user))

    def _charge_output(self, request: Request) -> None:
        total = sum(len(seq.tokens) - seq.num_prompt for seq in request.sequences)
        charged = self._charged[request.id]
        if total > charged:
            self._charged[request.id] = total
            self._counters[request.user] += OUTPUT_WEIGHT * (total - charged)

    def _forget_below(self, counter: float) -> None:
        """Close the accounts of idle users whose next request would lift them to more anyway: what they are lifted to
        never falls."""
        while self._idle and self._idle[0][0] <= counter and self._idle[0][1] != self._latest:
            stood, user = heapq.heappop(self._idle)
            if user not in self._num_live and self._counters.get(user) == stood:
                del self._counters[user]
