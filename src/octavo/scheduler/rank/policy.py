"""What a policy is asked, and when."""

from __future__ import annotations

from abc import ABC, abstractmethod

from octavo.config import SchedulerConfig
from octavo.request import Request
from octavo.scheduler.rank.waiting import Rank, RankHeap, Waiting


class RankPolicy(ABC):
    """Gives every request its rank; smaller goes first.

    A rank changes at these moments only, so that the waiting can sit in a heap and one walk of the scheduler sees one
    order: when the request arrives (:meth:`rank`), while it is first of the waiting (:meth:`Waiting.first`), and, for
    the resident ones, between two steps (:meth:`refresh`). Every policy promises two things, and says why it can:
    nothing starves (a finite number of requests, however many arrive, go before a given one), and no two take turns
    at preempting one another (who was preempted by another ranks behind it until that one is preempted or ends).
    """

    waiting: Waiting

    def __init__(self, config: SchedulerConfig) -> None:
        self.waiting = RankHeap()

    @abstractmethod
    def rank(self, request: Request, order: int) -> Rank:
        """The rank of a request that arrives, the ``order``-th of all."""

    def refresh(self, running: list[Request]) -> None:  # noqa: B027 (a hook that few need)
        """A step begins: bring the ranks of ``running`` up to date, and it into their order."""

    def admitted(self, request: Request) -> None:  # noqa: B027 (a hook that few need)
        """The request becomes resident, for the first time or once more."""

    def left(self, request: Request) -> None:  # noqa: B027 (a hook that few need)
        """The request has ended."""
