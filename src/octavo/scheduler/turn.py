"""One walk over the requests in rank order: who is admitted, who gets memory, and how long a chunk may be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from octavo.config import SchedulerConfig
from octavo.memory import MemoryManager
from octavo.request import Request, Sequence
from octavo.scheduler.rank import Rank
from octavo.scheduler.residency import Residency


def _rank(request: Request) -> Rank:
    return request.rank


class Turn:
    """The state of one ``schedule()`` call: what has been given out so far, to whom, and who is next."""

    __slots__ = ("_budget", "_prefill_room", "memory", "promised", "residency", "short", "skipped", "static")

    def __init__(self, config: SchedulerConfig, memory: MemoryManager, residency: Residency) -> None:
        self.memory = memory
        self.residency = residency
        self.static = config.batching == "static"
        self._budget = config.max_num_batched_tokens
        self._prefill_room: int | None = None
        self.promised = 0  # blocks that prompts admitted so far will still want in later steps
        self.short = False  # somebody is short of blocks: nobody below takes any
        self.skipped: list[Request] = []
        residency.step_began = residency.num_runs

    def in_rank_order(self) -> Iterator[Request]:
        """The resident requests, each waiting one admitted at its place if it can be. Requests that are preempted
        on the way have not been met yet, or met in vain, and are not admitted in the same step: nobody is met twice."""
        running, waiting = self.residency.running, self.residency.waiting
        admitting = bool(waiting) and not (self.static and running)
        i = 0
        while True:
            if admitting and waiting and (i == len(running) or waiting.first().rank < running[i].rank):
                admitted = self._admit(waiting.first())
                if admitted is None:
                    self.skipped.append(waiting.pop())
                    continue
                admitting = admitted
            if i == len(running):
                return
            request = running[i]
            yield request
            if i < len(running) and running[i] is request:
                i += 1
            else:  # it has failed, or (where rank protects nobody) one above it was preempted
                i = bisect_right(running, request.rank, key=_rank)

    @property
    def prefill_room(self) -> int:
        """What decodes leave of the budget to prefills, and earlier prefills of that. Counted when it is first asked
        for. Decodes that may yet stall for want of a block do not count: a prompt ranked above them must not wait
        for them, while they wait for its blocks."""
        if self._prefill_room is None:
            self._prefill_room = self._budget - sum(
                seq.num_total - seq.num_scheduled == 1 and seq.num_scheduled < seq.capacity
                for request in self.residency.running
                for seq in request.live
            )
        return self._prefill_room

    def close(self) -> None:
        """Those that were skipped wait on."""
        for request in self.skipped:
            self.residency.waiting.push(request)

    def _admit(self, request: Request) -> bool | None:
        """True: the first waiting request is resident now. False: not in this step, nor is anybody behind it. None:
        it waits for a prefix that another is computing, which is no reason to hold up those behind it."""
        crowded = self.prefill_room <= 0
        if self.short or (crowded and not self.static) or any(seq.in_flight for seq in request.live):
            return False
        if request.live[0].id in self.residency.preempted:
            return False
        first, *others = request.live
        nodes = self._match(first)
        on_host = first.swapped is not None and len(nodes) >= first.swapped.first
        point = self._fork_point(first, nodes)
        if not on_host and not point and self._awaits(first, nodes):
            return None
        # The whole of what it has to recompute must fit, beside what others were promised, and one block to grow for
        # each sequence ranked above that may come to want one (its last token is never computed); it is not taken at
        # once, but chunk by chunk.
        if point and first.request.source is not None and first.request.source.request.rank < request.rank:
            need, nodes = self.memory.forks.need(first.num_total, point), []
        else:  # what it could share may have to go to make room for it
            need = self.memory.need(first, first.num_total, nodes)
        need += sum(self.memory.layout.blocks_beside(seq.num_total, first.num_prompt) for seq in others)
        rank = request.rank
        above = sum(
            seq.limit - 1 > seq.capacity for other in self.residency.running if other.rank < rank for seq in other.live
        )
        admitted = self.residency.admit(need + self.promised + above, nodes)
        if admitted and crowded:  # a static batch is put together at once, however many steps its prompts take
            self.promised += need
        return admitted

    def grow(self, seq: Sequence, upto: int) -> bool:
        """Reserve memory up to position ``upto``, preempting from below if need be; False, and nothing changed, if
        that does not suffice."""
        need = self.memory.need(seq, upto)
        if need and (self.short or not self.residency.make_room(seq, need)):
            self.short = True
            return False
        self.memory.reserve(seq, upto)
        return True

    def prefill(self, seq: Sequence, room: int) -> int:
        """Reserve memory for the next chunk of a prompt (or of a recomputation), and return its length, 0 if it
        computes nothing in this step."""
        room = min(room, self.prefill_room)
        # Decodes may have taken more than was counted: one that might have stalled got its block, or one planned into
        # the last slot of its block looked as if it might. What is not there must not be held out to anybody else, or
        # all who wait are seated at once and none of them computes.
        self._prefill_room = room
        request = seq.request
        # Beams that recompute stop before their last token, which they compute together.
        end = seq.num_total - (len(request.live) > 1 and request.params.beam_width > 1)
        if room <= 0 or end <= seq.num_scheduled:
            return 0
        if not seq.num_scheduled and not self._share(seq, end, room):
            return 0
        upto = self._come_back(seq, end, room)
        count = min(upto - seq.num_scheduled, room)
        if count <= 0:
            return 0
        if seq.num_scheduled + count > seq.capacity and not self.grow(seq, seq.num_scheduled + count):
            return 0
        self.memory.leaders.lead(seq)
        self._prefill_room = self.prefill_room - count
        self.promised += self.memory.layout.blocks_for(end) - self.memory.layout.blocks_for(seq.num_scheduled + count)
        return count

    def _share(self, seq: Sequence, end: int, room: int) -> bool:
        """Begin a sequence that holds nothing with what is cached of it; False if it has to wait."""
        if not self.short and seq.request.prompt_logprobs is None:
            self.memory.promote(seq)
        nodes = self._match(seq)
        start, swapped = len(nodes) * self.memory.block_size, seq.swapped
        point = self._fork_point(seq, nodes)
        if point:
            start = point
        elif swapped is not None and len(nodes) >= swapped.first:
            start = max(start, swapped.length)
        elif self._awaits(seq, nodes):
            return False
        # The first chunk's blocks are asked for along with the prefix, lest it be shared and then stuck.
        upto = min(end, start + room)
        need = self.memory.forks.need(upto, point) if point else self.memory.need(seq, upto, nodes)
        if self.short or not self.residency.make_room(seq, need, () if point else nodes):
            self.short = True
            return False
        nodes = self._match(seq)  # again: making room may have dropped nodes, or the source of a fork
        source, seq.request.source = seq.request.source, None
        point = self.memory.forks.point(seq, source) if point else 0
        if source is not None and point > len(nodes) * self.memory.block_size:
            self.memory.fork(source, seq, point)
        else:
            self.memory.share(seq, nodes)
        if not seq.request.num_preemptions:  # what it finds on coming back are, for the most part, its own blocks
            seq.request.num_cached = seq.num_computed
        return True

    def _come_back(self, seq: Sequence, end: int, room: int) -> int:
        """Move a swapped sequence's blocks back, once it holds what precedes them; returns how far it may compute in
        this step: up to ``end``, or up to those blocks."""
        memory, swapped = self.memory, seq.swapped
        if swapped is None:
            return end
        first = swapped.first * memory.block_size
        if seq.num_scheduled < first:  # what it shared with others has gone with them, and is computed again
            return min(end, first)
        if seq.in_flight:
            return 0
        need = memory.need(seq, min(end, max(swapped.length, seq.num_scheduled) + room))
        if need and (self.short or not self.residency.make_room(seq, need)):
            self.short = True
            return 0
        memory.swap_in(seq)
        return end

    def beams(self, request: Request, room: int) -> list[Sequence]:
        """The beams of a request that may be planned: while some recompute after a preemption, those; else all of
        them together, if budget and memory are there for all."""
        live = request.live
        if len(live) == 1:
            return live
        behind = [seq for seq in live if seq.num_total - seq.num_scheduled > 1]
        if behind:
            return behind
        if len(live) > room or live[0].in_flight:
            return []
        grown = all(seq.num_scheduled < seq.capacity or self.grow(seq, seq.num_total) for seq in live)
        return live if grown else []

    def _fork_point(self, seq: Sequence, nodes: list[int]) -> int:
        """Where a fork can begin by sharing its source's memory, if that is beyond where ``nodes`` end; else 0."""
        request = seq.request
        if request.source is None or request.prompt_logprobs is not None:
            return 0
        point = self.memory.forks.point(seq, request.source)
        return point if point > len(nodes) * self.memory.block_size else 0

    def _match(self, seq: Sequence) -> list[int]:
        if seq.request.prompt_logprobs is not None and seq.num_total == seq.num_prompt:
            # Logits of every prompt position are wanted, so every position is computed (once: a swapped sequence has
            # those of what it brings back).
            done = 0 if seq.swapped is None else seq.swapped.length // self.memory.block_size
            return self.memory.match(seq)[:done]
        return self.memory.match(seq)

    def _awaits(self, seq: Sequence, nodes: list[int]) -> bool:
        """Whether a sequence ranked before this one (or a sibling) is computing the block that comes next."""
        if seq.request.prompt_logprobs is not None:
            return False
        leader = self.memory.leaders.find(seq, nodes)
        if leader is None or leader is seq:
            return False
        return leader.request is seq.request or leader.request.rank < seq.request.rank
