"""A scheduler over contiguous memory, as systems had before paging: the baseline to compare with."""

from __future__ import annotations

import itertools
from collections import deque

from octavo.config import SchedulerConfig
from octavo.errors import ConfigError, OutOfBlocksError, RequestTooLargeError
from octavo.memory.contiguous import RULES, ContiguousAllocator
from octavo.plan import PENDING, Chunk, SlotInit, StepPlan, StepResult, Want
from octavo.request import FinishReason, Request, Sequence, SequenceState
from octavo.simulator.meter import Usage


class ContiguousScheduler:
    """Continuous batching with chunked prefill, first come first served, where each request is given one stretch of
    memory on admission and keeps it to its end. Whoever is first among the waiting and finds no hole that is large
    enough holds up those behind. Nobody is preempted, for nobody's memory grows; nothing is shared.

    Args:
        config: the real scheduler's; blocks are only counted, ``num_blocks * block_size`` token slots in all.
        rule: how much a request is given: a name in :data:`~octavo.memory.contiguous.RULES`. "reserve-max" sets aside
            ``max_model_len``; "power-of-two" comes with a buddy allocator; "oracle" knows the output's length.

    Raises:
        ConfigError: the rule is unknown.
    """

    def __init__(self, config: SchedulerConfig, rule: str) -> None:
        if rule not in RULES:
            raise ConfigError(f"contiguous={rule!r} is unknown: use one of {', '.join(RULES)}")
        self.config = config
        self._rule = RULES[rule]
        self._capacity = config.num_blocks * config.block_size
        self._memory = ContiguousAllocator(self._capacity, buddy=rule == "power-of-two")
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._address: dict[int, int] = {}  # sequence id -> where its memory begins
        self._free_slots = list(range(config.max_num_seqs - 1, -1, -1))
        self._init: list[Sequence] = []
        self._released: list[int] = []
        self._planned: dict[int, list[Sequence]] = {}
        self._steps, self._ids = itertools.count(), itertools.count()

    def has_unfinished(self) -> bool:
        """Whether a request is live."""
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            RequestTooLargeError: what it would be given is more than all memory.
        """
        size = self._size(request)
        taken = 1 << (size - 1).bit_length() if self._memory.buddy else size
        if taken > self._capacity:
            length = len(request.prompt_token_ids) + request.max_new_tokens
            raise RequestTooLargeError(
                f"a request of {length} tokens would be given {taken} of {self._capacity} token slots: it can never fit"
            )
        seq = Sequence(next(self._ids), request, 0, list(request.prompt_token_ids))
        request.sequences = [seq]
        self._waiting.append(seq)

    def schedule(self) -> StepPlan:
        """The next step's plan: decodes first, then prompts chunk by chunk, within the token budget; who waits is
        seated when its turn to compute comes (a static batch, all at once)."""
        room = self.config.max_num_batched_tokens
        static = self.config.batching == "static"
        seating = not (static and self._running)
        chunks: list[Chunk] = []
        planned = [seq for seq in self._running if seq.num_scheduled < min(seq.num_total, seq.limit - 1)]
        planned.sort(key=lambda seq: seq.num_total - seq.num_scheduled > 1)
        for seq in planned:
            chunks.append(self._chunk(seq, min(room, seq.num_total - seq.num_scheduled)))
            room -= chunks[-1].count
            if not room:
                break
        while seating and self._waiting and self._free_slots and (room or static) and self._seat(self._waiting[0]):
            seq = self._waiting.popleft()
            self._running.append(seq)
            if room:
                planned.insert(len(chunks), seq)
                chunks.append(self._chunk(seq, min(room, seq.num_total)))
                room -= chunks[-1].count
        plan = StepPlan(
            step=next(self._steps),
            chunks=tuple(chunks),
            init=tuple(_init(seq) for seq in self._init),
            released=tuple(self._released),
        )
        self._init, self._released = [], []
        self._planned[plan.step] = planned[: len(chunks)]
        return plan

    def commit(self, plan: StepPlan, result: StepResult) -> list[Sequence]:
        """Append what was sampled, and give back the memory of whoever is done."""
        changed = []
        for seq, chunk, outcome in zip(self._planned.pop(plan.step), plan.chunks, result.results, strict=True):
            seq.num_computed += chunk.count
            if chunk.want is Want.SAMPLE:
                seq.tokens.append(outcome.samples[0].token)
                changed.append(seq)
                if len(seq.tokens) >= seq.limit:
                    self._end(seq)
        return changed

    def usage(self) -> Usage:
        """How memory is filled."""
        filled = sum(seq.num_scheduled for seq in self._running)
        return Usage(self._capacity, self._capacity - self._memory.num_free, filled, len(self._running))

    def _size(self, request: Request) -> int:
        return self._rule(len(request.prompt_token_ids), request.max_new_tokens, self.config.max_model_len)

    def _seat(self, seq: Sequence) -> bool:
        try:
            self._address[seq.id] = self._memory.allocate(self._size(seq.request))
        except OutOfBlocksError:
            return False
        seq.slot = self._free_slots.pop()
        seq.state = SequenceState.RUNNING
        self._init.append(seq)
        return True

    def _chunk(self, seq: Sequence, count: int) -> Chunk:
        start, end = seq.num_scheduled, seq.num_scheduled + count
        known = tuple(seq.tokens[start:end])
        last = end == seq.num_total
        seq.num_scheduled = end
        seq.num_total += last  # the sample to come
        return Chunk(
            seq.slot, seq.id, start, count, known + (PENDING,) * (count - len(known)), (0,), ((),),
            end - 1 if last else end, Want.SAMPLE if last else Want.NONE, seq.draws if last else (),
        )  # fmt: skip

    def _end(self, seq: Sequence) -> None:
        seq.finish_reason, seq.state = FinishReason.LENGTH, SequenceState.FINISHED
        self._running.remove(seq)
        self._memory.release(self._address.pop(seq.id))
        self._released.append(seq.slot)
        self._free_slots.append(seq.slot)


def _init(seq: Sequence) -> SlotInit:
    request = seq.request
    return SlotInit(
        seq.slot, seq.id, request.id, seq.index, request.seed, seq.num_prompt, tuple(seq.tokens), request.spec
    )
