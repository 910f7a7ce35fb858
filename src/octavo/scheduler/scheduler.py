"""Decides, step by step, who computes what, and takes in the results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from octavo.config import SchedulerConfig
from octavo.errors import EngineError, OutOfBlocksError, RequestTooLargeError, UnknownRequestError
from octavo.memory import MemoryManager
from octavo.plan import PENDING, Chunk, ChunkResult, Sample, SlotInit, StepPlan, StepResult, Want
from octavo.request import FinishReason, Request, Sequence, SequenceState
from octavo.scheduler import beam
from octavo.scheduler.drafting import Speculation
from octavo.scheduler.rank import POLICIES
from octavo.scheduler.residency import Residency
from octavo.scheduler.turn import Turn

_NO_BLOCKS: tuple[tuple[int, ...], ...] = ((),)
_PENDING_TOKEN = (PENDING,)


class Scheduler:
    """Plans steps over live requests, and takes in their results.

    ``schedule()`` walks the requests in rank order, the resident ones merged with the waiting ones. Memory is given
    in strict rank: whoever is short of blocks takes them from the bottom of the order, from requests ranked below it
    alone, and only if that suffices; once somebody stays short, nobody below gets new blocks in this step. Compute
    goes to decodes first, then to prefill chunks, within ``max_num_batched_tokens``; a prompt's memory grows chunk by
    chunk.

    It reads nothing but its configuration and its requests: no clock, no torch.
    (Continuous batching: Orca, OSDI '22. Chunked prefill beside decodes: Sarathi-Serve, OSDI '24.)
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.memory = MemoryManager(config)
        self.policy = POLICIES[config.policy](config)
        self.residency = Residency(config, self.memory, self.policy)
        self.requests: dict[str, Request] = {}  # every live one
        self._speculation = None if config.speculative is None else Speculation(config, self.memory)
        self._arrivals = itertools.count()
        self._sequence_ids = itertools.count()
        self._steps = itertools.count()
        self.num_out_of_blocks = 0  # requests that failed for lack of memory
        self._failed: list[Sequence] = []  # their sequences, for the next commit to return
        self._planned: dict[int, list[tuple[Sequence, int]]] = {}  # step -> (sequence, epoch) of each chunk

    # -- requests come and go ----------------------------------------------------------------------------------

    def has_unfinished(self) -> bool:
        """Whether a request is live."""
        return bool(self.requests)

    def check(self, request: Request) -> None:
        """Refuse a request that could never be served, however long it waited.

        Raises:
            RequestTooLargeError: it needs more blocks, slots or tokens a step than there are.
        """
        config, params = self.config, request.params
        if params.num_sequences > config.max_num_seqs:
            raise RequestTooLargeError(
                f"the request grows {params.num_sequences} sequences at once, max_num_seqs is {config.max_num_seqs}: "
                "lower n, best_of or beam_width, or raise max_num_seqs"
            )
        if params.beam_width > config.max_num_batched_tokens:
            raise RequestTooLargeError(
                f"beam_width={params.beam_width} exceeds max_num_batched_tokens={config.max_num_batched_tokens}, "
                "but beams advance together: lower the one or raise the other"
            )
        most = self.memory.layout.most_blocks(request)
        if most > config.num_blocks:
            raise RequestTooLargeError(
                f"prompt and max_tokens ({len(request.prompt_token_ids)} + {request.max_new_tokens} tokens, "
                f"{params.num_sequences} sequence(s)) can need {most} blocks of {config.block_size}; the pool has "
                f"{config.num_blocks}: shorten the request, or raise num_blocks"
            )

    def add(self, request: Request) -> None:
        """Take a request in.

        Raises:
            RequestTooLargeError: it could never fit; nothing was changed.
        """
        self.check(request)
        request.rank = self.policy.rank(request, next(self._arrivals))
        if not self.config.prefix_caching:
            # Its own sequences may still share with one another, and with its forks.
            source = request.source
            request.namespace = ("request", str(request.rank[1])) if source is None else source.request.namespace
        first = request.first_index
        seq = self._new_sequence(request, first, list(request.prompt_token_ids))
        if request.params.beam_width == 1:
            seq.draws = tuple(range(first, first + request.params.num_sequences))
        request.sequences, request.live = [seq], [seq]
        if request.params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]  # nothing comes before the first token
        self.requests[request.id] = request
        self.residency.waiting.push(request)

    def abort(self, request_id: str) -> Request:
        """Withdraw a request, at any moment.

        Raises:
            UnknownRequestError: no live request has this id.
        """
        request = self.requests.get(request_id)
        if request is None:
            raise UnknownRequestError(f"no live request has the id {request_id!r}")
        self._end_request(request, FinishReason.ABORT)
        return request

    def stop(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        """End one sequence from outside (a stop string was found in its text)."""
        if seq.state is not SequenceState.FINISHED:
            self._end(seq, reason, stop_reason)

    def sequences(self) -> Iterator[Sequence]:
        """Every sequence that may hold blocks."""
        return self.residency.sequences()

    # -- planning ----------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """The next step's plan. Without chunks: nothing can be done before a plan in flight is collected."""
        decodes: list[Chunk] = []
        prefills: list[Chunk] = []
        decoding: list[tuple[Sequence, int]] = []
        prefilling: list[tuple[Sequence, int]] = []
        self.policy.refresh(self.residency.running)
        turn = Turn(self.config, self.memory, self.residency)
        by_run = self.config.victims == "lru"
        room = self.config.max_num_batched_tokens  # for decodes and prefills together
        for request in turn.in_rank_order():
            try:
                for seq in request.live if request.params.beam_width == 1 else turn.beams(request, room - len(decodes)):
                    start = seq.num_scheduled
                    count = seq.num_total - start
                    if count == 1:  # the steady state: one token, and mostly in memory that it has
                        if len(decodes) >= room or seq.num_total >= seq.limit:
                            continue
                        if start >= seq.capacity and not turn.grow(seq, start + 1):
                            continue
                        decodes.append(self._decode(seq, start))
                        decoding.append((seq, seq.epoch))
                    elif count > 1:
                        count = turn.prefill(seq, room - len(decodes))
                        if not count:
                            continue
                        room -= count
                        prefills.append(self._chunk(seq, seq.num_scheduled, count))
                        prefilling.append((seq, seq.epoch))
                    else:
                        continue
                    if by_run:
                        self.residency.note_run(request)
            except OutOfBlocksError as error:
                self._fail(request, error)
        turn.close()
        if self._speculation is not None and decodes:
            rows = self.config.max_num_batched_tokens - room + len(decodes)
            # One block stays for each resident request: drafts are not to bring about a preemption.
            blocks = 0 if turn.short else self.memory.num_free - len(self.residency.running)
            self._speculation.extend(decodes, decoding, rows, room - len(decodes), blocks)
        return self._plan(decodes + prefills, decoding + prefilling)

    def _plan(self, chunks: list[Chunk], planned: list[tuple[Sequence, int]]) -> StepPlan:
        memory, residency, swaps = self.memory, self.residency, self.memory.swaps
        plan = StepPlan(
            step=next(self._steps),
            chunks=tuple(chunks),
            init=tuple(_slot_init(seq) for seq in residency.init.values()),
            swap_out=tuple(swaps.moves_out),
            copies=tuple(memory.copies),
            swap_in=tuple((host, block) for block, host in swaps.moves_in.items()),
            released=tuple(residency.released),
            preempted=tuple(residency.preempted),
            evicted=tuple(memory.evicted),
        )
        for carried in (residency.init, residency.released, residency.preempted, memory.copies, memory.evicted):
            carried.clear()
        swaps.end_step()
        self._planned[plan.step] = planned
        return plan

    def _decode(self, seq: Sequence, start: int) -> Chunk:
        """:meth:`_chunk` for the steady state, by a shorter way: one new token of a plain sequence, one table."""
        if len(seq.tables) > 1 or start < seq.num_prompt or seq.request.params.beam_width > 1:
            return self._chunk(seq, start, 1)
        table = seq.tables[0]
        sent, held = table.sent, len(table.blocks)
        if sent == held:
            blocks = _NO_BLOCKS
        else:
            blocks = (tuple(table.blocks[sent:]),)
            table.sent = held
        token = (seq.tokens[start],) if start < len(seq.tokens) else _PENDING_TOKEN
        seq.num_scheduled = start + 1
        seq.num_total += 1
        seq.in_flight += 1
        # tuple.__new__ spares the named tuple's own constructor, a tenth of a step.
        return tuple.__new__(
            Chunk, (seq.slot, seq.id, start, 1, token, (sent,), blocks, start, Want.SAMPLE, seq.draws, 0)
        )

    def _chunk(self, seq: Sequence, start: int, count: int) -> Chunk:
        """Describe ``count`` tokens of ``seq`` from ``start``, and move the cursor over them."""
        end = start + count
        tokens: tuple[int, ...] = tuple(seq.tokens[start:end])
        if len(tokens) < count:
            tokens += (PENDING,) * (count - len(tokens))
        blocks_from = tuple(table.sent for table in seq.tables)
        blocks = tuple(tuple(table.blocks[table.sent :]) for table in seq.tables)
        for table in seq.tables:
            table.sent = len(table.blocks)
        request = seq.request
        want, outputs_from = Want.NONE, end
        draws: tuple[int, ...] = ()
        if end == seq.num_total:
            outputs_from = end - 1
            if request.params.beam_width > 1:
                want = Want.LOGPROBS
            else:
                want, draws = Want.SAMPLE, seq.draws
                if len(draws) == 1:
                    seq.num_total += 1  # the sample to come; several wait for the commit that forks them
        known = request.prompt_logprobs
        if known is not None and len(known) < seq.num_prompt and start < seq.num_prompt - 1:
            outputs_from = min(outputs_from, max(start, len(known) - 1))
        seq.num_scheduled = end
        seq.in_flight += 1
        return Chunk(seq.slot, seq.id, start, count, tokens, blocks_from, blocks, outputs_from, want, draws)

    # -- results -----------------------------------------------------------------------------------------------

    def commit(self, plan: StepPlan, result: StepResult) -> list[Sequence]:
        """Take in what a plan brought: publish full blocks, fork, append, stop, free. Plans are committed in order.

        Returns:
            the sequences that have new tokens or have ended, a new fork and a finished beam included.
        """
        planned = self._planned.pop(plan.step)
        if len(result.results) != len(planned):
            raise EngineError(f"step {plan.step}: {len(planned)} chunks were planned, {len(result.results)} came back")
        size, publish = self.memory.block_size, self.memory.publish
        windowed, give_back = bool(self.memory.layout.windowed), self.memory.give_back
        changed, self._failed = self._failed, []
        searches: dict[str, list[tuple[Sequence, beam.TopTokens]]] = {}
        for (seq, epoch), chunk, outcome in zip(planned, plan.chunks, result.results, strict=True):
            seq.in_flight -= 1
            if seq.state is SequenceState.FINISHED:
                self.residency.bury(seq)
                continue
            if outcome.error is not None:
                seq.request.failure = outcome.error
                changed += self._end_request(seq.request, FinishReason.ERROR)
                continue
            if chunk.drafts:
                self._take_verified(seq, chunk, outcome.samples, resident=epoch == seq.epoch)
                changed.append(seq)
                continue
            if epoch == seq.epoch:
                seq.num_computed += chunk.count
                if seq.num_computed - seq.num_published * size >= size:
                    publish(seq)
                if windowed:
                    give_back(seq)
            if outcome.prompt:
                self._take_prompt_logprobs(seq.request, chunk, outcome)
            want = chunk.want
            if want is Want.SAMPLE:
                if len(chunk.draws) == 1:
                    self._append(seq, outcome.samples[0])
                    changed.append(seq)
                elif epoch == seq.epoch:
                    changed += self._fan_out(seq, outcome.samples)
            elif want is Want.LOGPROBS and epoch == seq.epoch:
                searches.setdefault(seq.request.id, []).append((seq, outcome.top))
        for request_id, beams in searches.items():
            if request_id in self.requests:
                changed += self._advance_beams(self.requests[request_id], beams)
        return changed

    def _take_verified(self, seq: Sequence, chunk: Chunk, samples: tuple[Sample, ...], resident: bool) -> None:
        """Take in a chunk with drafts as what it stands for: one step after another, each of one token. The cursor
        stops where the first draft was wrong; what was written beyond it is written again. (If the sequence was
        preempted since, its tokens count all the same, and nothing is in memory.)"""
        request, memory = seq.request, self.memory
        request.num_drafted += chunk.drafts
        request.num_accepted += len(samples) - 1
        for sample in samples:
            if resident:
                seq.num_computed += 1
                if seq.num_computed - seq.num_published * memory.block_size >= memory.block_size:
                    memory.publish(seq)
                if memory.layout.windowed:
                    memory.give_back(seq)
            self._append(seq, sample)
            if seq.state is SequenceState.FINISHED:
                return
        seq.num_total = len(seq.tokens)
        if resident:
            seq.num_scheduled = seq.num_computed

    def _append(self, seq: Sequence, sample: Sample) -> None:
        token = sample.token
        seq.tokens.append(token)
        if sample.logprob is not None:
            seq.cumulative_logprob += sample.logprob
            if seq.logprobs is None:
                seq.logprobs = []
            seq.logprobs.append({token: sample.logprob, **dict(sample.top)})
        if token in seq.request.stop_ids:
            self._end(seq, FinishReason.STOP, token if token in (seq.request.params.stop_token_ids or ()) else None)
        elif len(seq.tokens) >= seq.limit:
            self._end(seq, FinishReason.LENGTH)

    def _fan_out(self, seq: Sequence, samples: tuple[Sample, ...]) -> list[Sequence]:
        """The prompt is computed: grow ``n`` sequences from its last position, forked from one another."""
        request = seq.request
        for index in range(1, len(samples)):
            self._fork(seq, seq.index + index)
        seq.draws = (seq.index,)
        grown = list(request.sequences)
        for each, sample in zip(grown, samples, strict=True):
            each.num_total = len(each.tokens) + 1
            self._append(each, sample)
        return grown

    def _fork(self, parent: Sequence, index: int) -> Sequence:
        request = parent.request
        child = self._new_sequence(request, index, list(parent.tokens))
        child.cumulative_logprob = parent.cumulative_logprob
        child.logprobs = None if parent.logprobs is None else list(parent.logprobs)
        self.memory.fork(parent, child)
        self.residency.seat(child)
        request.sequences.append(child)
        request.live.append(child)
        return child

    def _advance_beams(self, request: Request, beams: list[tuple[Sequence, beam.TopTokens]]) -> list[Sequence]:
        step = beam.advance(request, beams)
        for extension in step.finished:
            self._keep_hypothesis(request, extension)
        if beam.is_over(request, step.running):
            return self._end_search(request)
        heirs = {extension.parent.id for extension in step.running}
        for seq, _ in beams:  # first, so that the forks find slots
            if seq.id not in heirs:
                request.sequences.remove(seq)
                self.residency.drop(seq)
                self.residency.promise(request)
        grown: set[int] = set()
        extended: list[tuple[Sequence, beam.Extension]] = []
        for extension in step.running:  # all forks before any token is appended to a parent
            fresh = extension.parent.id not in grown
            grown.add(extension.parent.id)
            extended.append((extension.parent if fresh else self._fork(extension.parent, 0), extension))
        for seq, extension in extended:
            seq.tokens.append(extension.token)
            seq.num_total = len(seq.tokens)
            seq.cumulative_logprob = extension.score
        request.sequences = [seq for seq, _ in extended]  # best first: so ties are broken in the next step, too
        request.live = list(request.sequences)
        return []

    def _keep_hypothesis(self, request: Request, extension: beam.Extension) -> None:
        seq = self._new_sequence(request, 0, [*extension.parent.tokens, extension.token])
        seq.state = SequenceState.FINISHED
        stopped = extension.token in request.stop_ids
        seq.finish_reason = FinishReason.STOP if stopped else FinishReason.LENGTH
        seq.stop_reason = extension.token if extension.token in (request.params.stop_token_ids or ()) else None
        seq.cumulative_logprob = extension.score
        request.hypotheses.append((beam.final_score(request, extension), seq))
        request.hypotheses.sort(key=lambda entry: -entry[0])
        del request.hypotheses[request.params.beam_width :]

    def _end_search(self, request: Request) -> list[Sequence]:
        for seq in list(request.live):
            self.residency.drop(seq)
        request.sequences = [seq for _, seq in request.hypotheses[: request.params.n]]
        self._close(request)
        return list(request.sequences)

    def _take_prompt_logprobs(self, request: Request, chunk: Chunk, outcome: ChunkResult) -> None:
        known = request.prompt_logprobs
        for position, sample in enumerate(outcome.prompt, chunk.outputs_from + 1):
            if known is not None and position == len(known) and sample.logprob is not None:
                known.append({sample.token: sample.logprob, **dict(sample.top)})

    # -- endings -----------------------------------------------------------------------------------------------

    def _end(self, seq: Sequence, reason: FinishReason, stop_reason: int | str | None = None) -> None:
        seq.finish_reason, seq.stop_reason = reason, stop_reason
        self._drop(seq)
        request = seq.request
        if not request.live:
            params = request.params
            if params.best_of is not None and params.best_of > params.n:
                request.sequences.sort(key=lambda each: (-each.cumulative_logprob, each.index))
                del request.sequences[params.n :]
            self._close(request)

    def _end_request(self, request: Request, reason: FinishReason) -> list[Sequence]:
        """End all its live sequences at once, and nothing else of it is chosen or ranked."""
        ended = list(request.live)
        for seq in ended:
            seq.finish_reason = reason
            self._drop(seq)
        self._close(request)
        return ended

    def _drop(self, seq: Sequence) -> None:
        self.residency.drop(seq)
        if self._speculation is not None:
            self._speculation.forget(seq)

    def _fail(self, request: Request, error: OutOfBlocksError) -> None:
        """Under ``victims="none"``: a request ends in the middle of its run, alone."""
        request.failure = str(error)
        self.num_out_of_blocks += 1
        self._failed += self._end_request(request, FinishReason.ERROR)

    def _close(self, request: Request) -> None:
        self.residency.leave(request)
        del self.requests[request.id]

    def _new_sequence(self, request: Request, index: int, tokens: list[int]) -> Sequence:
        return Sequence(next(self._sequence_ids), request, index, tokens, self.memory.layout.num_groups)


def _slot_init(seq: Sequence) -> SlotInit:
    request = seq.request
    return SlotInit(
        seq.slot,
        seq.id,
        request.id,
        seq.index,
        request.seed,
        seq.num_prompt,
        tuple(seq.tokens),
        request.spec,
        request.salt,
    )
