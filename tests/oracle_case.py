"""Random loads over the KV oracle: one seed is one case, run step by step with every audit."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from octavo.config import EVICTIONS, SchedulerConfig
from octavo.errors import RequestTooLargeError
from octavo.plan import LayerGroup, SamplingSpec, StepPlan
from octavo.request import FinishReason, Request, SamplingParams, Sequence, SequenceState
from octavo.scheduler import Scheduler, beam
from octavo.simulator.oracle import OracleExecutor, chain, draw, likeliest, mix, root

STOP = 0


class Case:
    """A scheduler over an oracle executor, driven by hand, audited after each half-step."""

    def __init__(self, config: SchedulerConfig, *, vocab_size: int = 4, failing: frozenset[str] = frozenset()) -> None:
        self.config = config
        self.vocab_size = vocab_size
        self.failing = failing
        self.scheduler = Scheduler(config)
        self.executor = OracleExecutor(
            config.num_blocks,
            config.block_size,
            num_host_blocks=config.num_host_blocks,
            groups=config.groups,
            vocab_size=vocab_size,
            failing=failing,
        )
        self.plans: list[StepPlan] = []
        self.requests: dict[str, Request] = {}
        self.in_flight: deque[tuple[StepPlan, object]] = deque()
        self.refused = 0
        self.first_resident: list[str] = []  # request ids in the order of their first admission
        self._seen: set[str] = set()

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        arrival: float = 0.0,
        user: str | None = None,
        salt: str | None = None,
        stops: bool = True,
        fork_of: Sequence | None = None,
    ) -> Request | None:
        """Add a request; None if it can never fit. A fork's prompt is that of its source's first tokens."""
        name = f"r{len(self.requests) + self.refused}"
        stop_ids = (STOP,) if stops else ()
        wide = params.beam_width
        request = Request(
            name,
            prompt,
            params,
            priority=priority,
            arrival=arrival,
            user=user,
            salt=salt,
            max_new_tokens=params.max_tokens or 1,
            stop_ids=stop_ids,
            noise=None if fork_of is None else fork_of.request.noise,
            source=None if fork_of is None or fork_of.state is SequenceState.FINISHED else fork_of,
            spec=SamplingSpec(
                logprobs=0 if params.best_of else params.logprobs,
                prompt_logprobs=params.prompt_logprobs,
                top=min(beam.candidates_wanted(wide, len(stop_ids)), self.vocab_size) if wide > 1 else 0,
            ),
        )
        try:
            self.scheduler.add(request)
        except RequestTooLargeError:
            self.refused += 1
            return None
        self.requests[name] = request
        return request

    def abort(self, name: str) -> None:
        if name in self.scheduler.requests:
            self.scheduler.abort(name)
            self.audit()

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.audit()
        assert plan.num_tokens <= self.config.max_num_batched_tokens
        assert len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
        assert not {chunk.seq_id for chunk in plan.chunks} & set(plan.preempted)
        assert len({page for _, page in plan.swap_out}) == len(plan.swap_out), (
            "a host page is written twice in one step"
        )
        self.plans.append(plan)
        for init in plan.init:
            if init.request_id not in self._seen:
                self._seen.add(init.request_id)
                self.first_resident.append(init.request_id)
        self.in_flight.append((plan, self.executor.submit(plan)))
        while len(self.in_flight) > (self.config.depth if plan.chunks else 0):
            done, handle = self.in_flight.popleft()
            self.scheduler.commit(done, self.executor.collect(handle))
            self.audit()
        return plan

    def audit(self) -> None:
        scheduler = self.scheduler
        scheduler.memory.audit(scheduler.sequences())
        ranks = [request.rank for request in scheduler.residency.running]
        assert ranks == sorted(ranks)
        live = {id(request) for request in scheduler.requests.values()}
        placed = [*scheduler.residency.running, *scheduler.residency.waiting]
        assert {id(request) for request in placed} == live
        assert len(placed) == len(live)
        for seq in scheduler.memory.swaps.swapped.values():
            assert seq.swapped is not None
            assert seq in seq.request.live
            assert id(seq.request) in live

    def drain(self, limit: int = 20_000) -> None:
        """Run until all is done; idle steps in a row, or very many steps, are a livelock."""
        idle = 0
        while self.scheduler.has_unfinished() or self.in_flight:
            idle = idle + 1 if not self.step().chunks else 0
            assert idle < 4, "livelock: nothing can be planned"
            limit -= 1
            assert limit, "livelock: it does not end"
        self.step()  # carries the last releases
        assert self.scheduler.memory.num_free == self.config.num_blocks
        assert self.scheduler.memory.num_host_free == self.config.num_host_blocks
        assert not self.executor.slots
        assert not list(self.scheduler.sequences())

    def check_outputs(self) -> None:
        """Every request that was not withdrawn has exactly the tokens that its prefix determines."""
        for request in self.requests.values():
            if any(seq.finish_reason is FinishReason.ABORT for seq in request.sequences):
                continue
            if self.config.victims == "none" and (request.failure or "").startswith("out of blocks"):
                continue
            if request.id in self.failing:
                assert request.failure
                assert all(seq.finish_reason is FinishReason.ERROR for seq in request.sequences if seq.finish_reason)
                continue
            expected = expect(request, self.vocab_size)
            got = [seq.output_token_ids for seq in request.sequences]
            assert got == expected, (request, got, expected)
            assert all(seq.state is SequenceState.FINISHED for seq in request.sequences)
            if request.prompt_logprobs is not None:
                assert request.prompt_logprobs == [
                    None,
                    *({token: -1.0 - i} for i, token in enumerate(request.prompt_token_ids[1:])),
                ]


def expect(request: Request, vocab_size: int) -> list[list[int]]:
    """What a request must generate, computed alone and without memory."""
    params = request.params
    if params.beam_width > 1:
        return expect_beams(request, vocab_size)[: params.n]
    outputs = []
    first = request.first_index
    for index in range(first, first + params.num_sequences):
        digest = chain(request.salt, request.prompt_token_ids)[-1]
        tokens: list[int] = []
        while len(tokens) < request.max_new_tokens:
            tokens.append(draw(digest, index, vocab_size))
            if tokens[-1] in request.stop_ids:
                break
            digest = mix(digest, tokens[-1])
        outputs.append(tokens)
    if params.best_of and params.best_of > params.n:  # the oracle's log-probabilities are -index - 0.5 a token
        order = sorted(range(params.best_of), key=lambda i: (sum(float(first + i) + 0.5 for _ in outputs[i]), i))
        outputs = [outputs[i] for i in order[: params.n]]
    return outputs


@dataclass
class _Beam:
    tokens: list[int]
    score: float


def expect_beams(request: Request, vocab_size: int) -> list[list[int]]:
    """A plain beam search over whole lists of tokens."""
    params, width = request.params, request.params.beam_width
    wanted = beam.candidates_wanted(width, len(request.stop_ids))
    beams, done = [_Beam([], 0.0)], []
    for length in range(1, request.max_new_tokens + 1):
        pool = []
        for each in beams:
            digest = root(request.salt)
            for token in [*request.prompt_token_ids, *each.tokens]:
                digest = mix(digest, token)
            for token, logprob in likeliest(digest, min(wanted, vocab_size), vocab_size):
                pool.append(_Beam([*each.tokens, token], each.score + logprob))
        pool.sort(key=lambda each: -each.score)
        ended = [each.tokens[-1] in request.stop_ids or length == request.max_new_tokens for each in pool[:wanted]]
        done += [
            (each.score / length**params.length_penalty, each.tokens)
            for each, end in zip(pool[:width], ended[:width], strict=False)
            if end
        ]
        done = sorted(done, key=lambda entry: -entry[0])[:width]
        beams = [each for each, end in zip(pool[:wanted], ended, strict=True) if not end][:width]
        if not beams:
            break
        if len(done) == width and (
            params.early_stopping or beams[0].score / length**params.length_penalty <= done[-1][0]
        ):
            break
    return [tokens for _, tokens in done]


def random_config(rng: random.Random) -> SchedulerConfig:
    """A configuration with little of everything."""
    block_size = rng.choice([1, 2, 3, 4, 8, 16, 32])
    groups = random_groups(rng)
    budget, depth = rng.choice([1, 2, 5, 7, 16, 64]), rng.choice([0, 1])
    # From "one request at a time" to "a few": most of what can go wrong goes wrong when memory is short.
    tokens, spare = rng.choice([40, 60, 80, 90, 100, 120, 150]), rng.randint(2, 4)
    num_blocks = sum(group.blocks_for(tokens, block_size, budget * (depth + 1)) + spare for group in groups)
    return SchedulerConfig(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=rng.choice([1, 2, 4, 8, 8]),
        max_num_batched_tokens=budget,
        policy=rng.choice(["fcfs", "priority", "priority", "srpt", "fair"]),
        ageing_seconds=rng.choice([0.5, 5.0, 50.0]),
        victims=rng.choice(["rank"] * 6 + ["lru", "lru", "none"]),
        batching="static" if rng.random() < 0.1 else "continuous",
        prefix_caching=rng.random() < 0.75,
        eviction=rng.choice(EVICTIONS),
        depth=depth,
        groups=groups,
        **random_speculation(rng),
        num_host_blocks=rng.choice([0, 4, 64, 64]),
        host_cache=rng.random() < 0.5,
        preemption=rng.choice(["auto", "swap", "swap", "recompute"]),
        page_bytes=1,  # to move one page out and in costs as much as to compute one or two tokens
        link_bandwidth=2.0,
        flops_per_token=1.0,
        attention_flops=rng.choice([0.0, 0.01]),
        compute_speed=rng.choice([0.6, 1.0]),
    )


def random_speculation(rng: random.Random) -> dict[str, Any]:
    """Drafts in every second case; with so few different tokens, they are accepted every now and then."""
    if rng.random() < 0.5:
        return {}
    shortest = rng.choice([1, 1, 2])
    return {
        "speculative": "ngram",
        "speculative_tokens": rng.choice([1, 2, 5, 15]),
        "ngram_min": shortest,
        "ngram_max": shortest + rng.choice([0, 2]),
        # Rows for nothing: every guess is tried. And rows that cost: few are.
        "step_costs": rng.choice([(1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.1, 1.2), (1.0, 1.5)]),
    }


def random_groups(rng: random.Random) -> tuple[LayerGroup, ...]:
    """Layer groups that see all of the past, or a window of it."""
    first, second = LayerGroup(1, rng.randint(1, 40)), LayerGroup(1, rng.randint(1, 40))
    full = LayerGroup(1)
    return rng.choice([(full,), (full,), (full, full), (first,), (first,), (full, first), (first, second)])


def random_params(rng: random.Random) -> SamplingParams:
    kind = rng.random()
    max_tokens = rng.choice([1, 2, 5, 9, 17, 30, 30, 40])
    if kind < 0.2:
        width = rng.choice([2, 3, 4])
        return SamplingParams(
            n=rng.randint(1, width),
            beam_width=width,
            max_tokens=max_tokens,
            length_penalty=rng.choice([0.0, 1.0, 2.0, -1.0]),
            early_stopping=rng.random() < 0.3,
        )
    n = rng.choice([1, 1, 1, 2, 2, 3, 3, 8])
    return SamplingParams(
        n=n,
        best_of=n + 2 if rng.random() < 0.15 else None,
        max_tokens=max_tokens,
        prompt_logprobs=0 if rng.random() < 0.1 else None,
    )


def random_case(seed: int) -> Case:
    """Run one whole case; whatever is wrong raises."""
    rng = random.Random(seed)
    config = random_config(rng)
    case = Case(
        config,
        vocab_size=rng.choice([1, 2, 4, 8] if config.speculative else [2, 4, 8]),
        failing=frozenset({"r1"}) if rng.random() < 0.1 else frozenset(),
    )
    # Short prompts that grow long overrun the pool after they were admitted: the way to preemption.
    short = rng.random() < 0.5
    stems = [[rng.randrange(2) for _ in range(rng.choice([4, 16, 40]))] for _ in range(2)]
    arrival = 0.0
    for _ in range(rng.randint(3, 60)):
        action = rng.random()
        if action < 0.4:
            prompt = list(rng.choice(stems))[: rng.randint(1, 6 if short else 40)]
            if rng.random() < 0.5:
                prompt += [rng.randrange(case.vocab_size) for _ in range(rng.randint(1, 6))]
            case.add(
                prompt,
                random_params(rng),
                priority=rng.choice([0, 0, 0, -3, 2]),
                arrival=arrival,
                user=rng.choice([None, "u", "v", "w"]),
                salt=rng.choice([None, None, "a", "b"]),
                stops=rng.random() < 0.5,
            )
        elif action < 0.46 and case.requests:
            fork_one(rng, case, arrival)
        elif action < 0.50 and case.requests:
            case.abort(rng.choice(list(case.requests)))
        elif action < 0.53 and case.scheduler.requests:
            stop_one(rng, case)
        else:
            case.step()
            arrival += rng.random()
    case.drain()
    case.check_outputs()
    return case


def stop_one(rng: random.Random, case: Case) -> None:
    """End a sequence from outside, as a stop string does; its request's outputs are then not checked."""
    request = rng.choice(list(case.scheduler.requests.values()))
    seq: Sequence = rng.choice(request.live)
    if request.params.beam_width == 1 and len(seq.tokens) > seq.num_prompt:
        case.scheduler.stop(seq, FinishReason.ABORT, "stopped")
        case.audit()


def fork_one(rng: random.Random, case: Case, arrival: float) -> None:
    """Fork some sequence of a request, live or not, at a token."""
    parent = rng.choice([*case.scheduler.requests.values()] or list(case.requests.values()))
    if not parent.sequences or (parent.params.beam_width > 1 and parent.id in case.scheduler.requests):
        return
    line: Sequence = rng.choice(parent.sequences)
    at = len(line.tokens) if rng.random() < 0.4 else rng.randint(1, len(line.tokens))
    case.add(
        line.tokens[:at],
        random_params(rng),
        priority=parent.priority,
        arrival=arrival,
        user=parent.user,
        salt=parent.salt,
        stops=rng.random() < 0.5,
        fork_of=line,
    )


def swapping_case(num_blocks: int, **config: object) -> Case:
    """A case in which whoever is preempted moves to one of 20 host blocks, and the least urgent goes first."""
    settings: dict[str, object] = {
        "block_size": 4,
        "policy": "priority",
        "ageing_seconds": 1000.0,
        "max_num_batched_tokens": 64,
        "num_host_blocks": 20,
        "preemption": "swap",
    }
    return Case(SchedulerConfig(num_blocks=num_blocks, **(settings | config)))  # type: ignore[arg-type]
