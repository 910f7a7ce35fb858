"""Who is resident: the running requests in rank order, the waiting ones in a heap, and the executor's slots."""

from __future__ import annotations

import itertools
from bisect import insort
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Numbers

from octavo.config import SchedulerConfig
from octavo.errors import OutOfBlocksError
from octavo.memory import MemoryManager
from octavo.request import Request, Sequence, SequenceState
from octavo.scheduler.preemption_cost import prefers_swap
from octavo.scheduler.rank import Rank, RankPolicy

Nodes = Numbers[int]
"""Of the prefix tree, from the root's child down."""


def _rank(request: Request) -> Rank:
    return request.rank


class Residency:
    """Requests move from ``waiting`` to ``running`` (admit), back (preempt), and out (leave).

    A running request holds, or has been promised, a slot for each of its sequences. What happens to slots is
    collected in ``released``, ``init`` and ``preempted`` until the next plan carries it to the executor.
    """

    def __init__(self, config: SchedulerConfig, memory: MemoryManager, policy: RankPolicy) -> None:
        self.config = config
        self.memory = memory
        self.policy = policy
        self.running: list[Request] = []
        self.waiting = policy.waiting
        self.victims = config.victims
        self.num_preemptions = 0
        self.num_runs = 0  # turns to compute, counted by note_run
        self.step_began = 0  # what num_runs was when the present step began
        self.released: list[int] = []
        self.init: dict[int, Sequence] = {}
        self.preempted: list[int] = []
        self._leaving: dict[int, Sequence] = {}  # finished, but named by a plan that is not collected yet
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._unpromised = config.max_num_seqs

    def sequences(self) -> Iterator[Sequence]:
        """Every sequence that may hold blocks."""
        for request in self.running:
            yield from request.live
        yield from self._leaving.values()

    # -- coming ------------------------------------------------------------------------------------------------

    def admit(self, need: int, nodes: Nodes) -> bool:
        """Make the first waiting request resident if ``need`` blocks and its slots can be had, preempting requests
        ranked below it if, and only if, that suffices; ``nodes`` is the cached prefix that it would share. (Under
        ``victims="lru"`` nobody is preempted for it; under ``"none"`` the blocks are not asked for either.)"""
        request = self.waiting.first()
        slots = request.num_slots - (self._unpromised - len(self._leaving))
        short = slots > 0 or (need > self.memory.num_free and self.victims != "none")
        if short and not (self.victims == "rank" and self._preempt_below(request, need, slots, nodes)):
            return False
        self.waiting.pop()
        self.policy.admitted(request)
        self._unpromised -= request.num_slots
        for seq in request.live:
            self.seat(seq)
        insort(self.running, request, key=_rank)
        return True

    def seat(self, seq: Sequence) -> None:
        """Give the sequence a slot; the next plan tells the executor."""
        seq.slot = self._free_slots.pop()
        seq.state = SequenceState.RUNNING
        self.init[seq.slot] = seq

    # -- making room -------------------------------------------------------------------------------------------

    def make_room(self, seq: Sequence, need: int, nodes: Nodes = ()) -> bool:
        """Have ``need`` blocks free for ``seq``, taking them from others if need be; False, and nothing changed, if
        all that may be taken from would not suffice. ``nodes`` is the cached prefix that it is about to share.

        Raises:
            OutOfBlocksError: under ``victims="none"``, there are too few.
        """
        if need <= self.memory.num_free:
            return True
        if self.victims == "none":
            if self._leaving:
                return False  # blocks of those that have ended come back with the plan in flight
            raise OutOfBlocksError(
                f"out of blocks: {need} more are needed at {seq.num_total} tokens, {self.memory.num_free} are free, "
                'and victims="none" takes them from nobody'
            )
        if self.victims == "rank":
            return self._preempt_below(seq.request, need, 0, nodes)
        return self._preempt_among(self._least_recently_run(seq), need, 0, nodes)

    def _preempt_below(self, request: Request, need: int, slots: int, nodes: Nodes) -> bool:
        lower = itertools.takewhile(lambda other: other.rank > request.rank, reversed(self.running))
        return self._preempt_among(lower, need, slots, nodes)

    def _least_recently_run(self, seq: Sequence) -> list[Request]:
        """Whom ``seq`` may take blocks from where rank does not protect: everybody who has not run in this step yet.
        One that computes its tokens for the first time or again, rather than a new one, takes only from those that
        rank below: each other preemption brings a new token, and those are finite, so this comes to an end."""
        growing = seq.num_total - seq.num_scheduled == 1 and seq.num_scheduled >= seq.num_prompt
        request, began = seq.request, self.step_began
        others = [
            other
            for other in self.running
            if other is not request and other.last_run <= began and (growing or other.rank > request.rank)
        ]
        return sorted(others, key=lambda other: other.last_run)

    def _preempt_among(self, others: Iterable[Request], need: int, slots: int, nodes: Nodes) -> bool:
        """Preempt as many of ``others`` as it takes, first ones first, and none if all of them do not suffice. What
        they hold of the prefix ``nodes`` makes no room: it goes over to the one that room is made for."""
        victims: list[Request] = []
        wanted = self.memory.shared_for_good(nodes)
        free, freed_slots = self.memory.num_free, 0
        for other in others:
            victims.append(other)
            freed_slots += other.num_slots
            if freed_slots >= slots and free + self.memory.yield_of(victims, wanted) >= need:
                break
        else:
            return False
        for victim in victims:
            self._preempt(victim)
        return True

    def _preempt(self, request: Request) -> None:
        """Take a running request's blocks and slots. It will go on with what was moved to host memory, or recompute
        from its tokens."""
        if self._swaps(request):
            for seq in reversed(request.live):  # what siblings share goes with the first of them, who is back first
                self.memory.swap_out(seq, seq.num_resumable)
        for seq in request.live:
            self.preempted.append(seq.id)
            self._vacate(seq)
            seq.epoch += 1
            seq.state = SequenceState.WAITING
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._stand_up(request)
        self.waiting.push(request)

    def note_run(self, request: Request) -> None:
        """The request computes something in this step."""
        self.num_runs += 1
        request.last_run = self.num_runs

    def _swaps(self, request: Request) -> bool:
        room = self.memory.num_host_free
        if not room or self.config.preemption == "recompute":
            return False
        departure = self.memory.swapper.departure(request)
        return departure is not None and departure.num_pages <= room and prefers_swap(self.config, departure)

    # -- leaving -----------------------------------------------------------------------------------------------

    def drop(self, seq: Sequence) -> None:
        """A sequence has ended: its blocks and its slot come back, unless a plan in flight still names them; then
        they do when that is collected (:meth:`bury`)."""
        request = seq.request
        self.memory.swaps.discard(seq)
        was_running = seq.state is SequenceState.RUNNING
        seq.state = SequenceState.FINISHED
        request.live.remove(seq)
        request.num_slots -= 1
        if not was_running:
            return
        self._unpromised += 1
        if seq.in_flight:
            self._leaving[seq.id] = seq
        else:
            self._vacate(seq)

    def promise(self, request: Request) -> None:
        """One slot more for a running request: a beam was dropped, and a fork will take its place."""
        request.num_slots += 1
        self._unpromised -= 1

    def bury(self, seq: Sequence) -> None:
        """The last plan that names a finished sequence has been collected."""
        if not seq.in_flight and self._leaving.pop(seq.id, None) is not None:
            self._vacate(seq)

    def leave(self, request: Request) -> None:
        """Take a request whose sequences have all ended out of the lists."""
        if request in self.running:
            self._stand_up(request)
        else:
            self.waiting.discard(request)
        self.policy.left(request)

    def _stand_up(self, request: Request) -> None:
        self.running.remove(request)
        self._unpromised += request.num_slots

    def _vacate(self, seq: Sequence) -> None:
        self.memory.free(seq)
        if seq.slot >= 0:
            if self.init.pop(seq.slot, None) is None:
                self.released.append(seq.slot)
            self._free_slots.append(seq.slot)
            seq.slot = -1
