"""Requests that wait in the order of their users' counters."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Mapping

from octavo.request import Request
from octavo.scheduler.rank.waiting import RankHeap, Waiting

TURNS_BY_AGE = 8
"""Every so many-th admission goes to the request that has waited longest, whatever its user's counter."""


class FairQueue(Waiting):
    """Each user's requests are a heap of their own, by order of arrival; a heap of users stands above them, by
    counter. A counter that rises leaves its user's entry there as it is: too low, which shows when it comes to the
    top, and is put right then. The rank of whoever is first is the number of first admissions so far; requests that
    come back from a preemption keep the one that they had, and so go before.

    Args:
        counters: each user's; they never fall.
        admitted: the ids of requests whose rank is fixed.
    """

    def __init__(self, counters: Mapping[str | None, float], admitted: Collection[str]) -> None:
        self._counters = counters
        self._admitted = admitted
        self._turn = 0  # first admissions so far
        self._returning = RankHeap()
        self._fresh: dict[str | None, list[tuple[int, Request]]] = {}  # of each user that has any
        self._users: list[tuple[float, int, str | None]] = []  # a heap: counter, order of the first request, user
        self._entry: dict[str | None, tuple[float, int]] = {}  # which of a user's entries counts
        self._orders: list[int] = []  # a heap of the orders of fresh requests, and of some that are gone
        self._of_order: dict[int, Request | None] = {}  # for each entry of it; None where gone
        self._size = 0

    def holds(self, user: str | None) -> bool:
        """Whether a request of the user waits for its first admission."""
        return user in self._fresh

    def least_counter(self) -> float | None:
        """The least among the users of whom a request waits for its first admission."""
        top = self._top()
        return None if top is None else self._counters[top.user]

    def count_admission(self) -> None:
        """A request was admitted for the first time."""
        self._turn += 1

    def push(self, request: Request) -> None:
        """O(log n)."""
        if request.id in self._admitted:
            self._returning.push(request)
            return
        order = request.rank[1]
        heapq.heappush(self._fresh.setdefault(request.user, []), (order, request))
        if order not in self._of_order:
            heapq.heappush(self._orders, order)
        self._of_order[order] = request
        self._size += 1
        self._enter(request.user)

    def first(self) -> Request:
        """O(log n), amortised over the counters that have risen."""
        if self._returning:
            return self._returning.first()
        fresh = self._top()
        assert fresh is not None, "nobody waits"
        if self._turn % TURNS_BY_AGE == TURNS_BY_AGE - 1:
            fresh = self._oldest()
        fresh.rank = (float(self._turn), fresh.rank[1])
        return fresh

    def pop(self) -> Request:
        """O(log n)."""
        request = self.first()
        if request.id in self._admitted:
            return self._returning.pop()
        heapq.heappop(self._fresh[request.user])
        self._removed(request)
        return request

    def discard(self, request: Request) -> None:
        """O(n)."""
        if request.id in self._admitted:
            self._returning.discard(request)
            return
        own = self._fresh[request.user]
        own.remove((request.rank[1], request))
        heapq.heapify(own)
        self._removed(request)

    def __iter__(self) -> Iterator[Request]:
        yield from self._returning
        for own in self._fresh.values():
            yield from (request for _, request in own)

    def __len__(self) -> int:
        return self._size + len(self._returning)

    def _removed(self, request: Request) -> None:
        self._size -= 1
        self._of_order[request.rank[1]] = None
        if self._fresh[request.user]:
            self._enter(request.user)
        else:
            del self._fresh[request.user]

    def _enter(self, user: str | None) -> None:
        """See that the user's entry is no higher than it should be; that it is too low shows at the top."""
        entry = (self._counters[user], self._fresh[user][0][0])
        if user not in self._entry or entry < self._entry[user]:
            self._entry[user] = entry
            heapq.heappush(self._users, (*entry, user))

    def _top(self) -> Request | None:
        """The first request of the user whose counter is least."""
        while self._users:
            counter, order, user = self._users[0]
            if self._entry.get(user) != (counter, order):
                heapq.heappop(self._users)  # another one counts
            elif user not in self._fresh:
                heapq.heappop(self._users)
                del self._entry[user]
            else:
                entry = (self._counters[user], self._fresh[user][0][0])
                if entry == (counter, order):
                    return self._fresh[user][0][1]
                self._entry[user] = entry
                heapq.heapreplace(self._users, (*entry, user))
        return None

    def _oldest(self) -> Request:
        """The fresh request that came first. There must be one."""
        while (request := self._of_order[self._orders[0]]) is None:
            del self._of_order[heapq.heappop(self._orders)]
        return request
