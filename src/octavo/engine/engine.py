"""The loop: requests come in, plans go out, results come back, text leaves."""

from __future__ import annotations

import importlib
import itertools
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

from octavo.config import EngineConfig, SchedulerConfig
from octavo.engine.admission import Admission, Prompt, sampling_params
from octavo.engine.interrupts import InterruptsHeld
from octavo.engine.outputs import OutputBuilder, take_in
from octavo.engine.retention import Origin, RetainedRequests
from octavo.engine.stats import EngineStats
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import EngineError, RequestError, UnknownRequestError
from octavo.hub import Progress, generation_defaults, resolve_model
from octavo.memory import MemorySnapshot
from octavo.plan import Executor, Handle, ModelFacts, StepPlan
from octavo.request import FinishReason, Request, RequestOutput, SamplingParams
from octavo.request import Sequence as TokenSequence
from octavo.scheduler import Scheduler


class Recorder(Protocol):
    """Whoever wants to see the plans (for one, :class:`octavo.recorder.RunLog`)."""

    def begin(self, config: SchedulerConfig) -> None:
        """Take down what the plans to come depend on."""

    def write(self, plan: StepPlan) -> None:
        """Take down a plan, before it runs."""


class Advance(Protocol):
    """A progress display for :meth:`LLMEngine.generate`."""

    def update(self, finished: int, total: int, generated_tokens: int) -> None:
        """So many of the requests are done, and so many tokens have been generated for them."""


class LLMEngine:
    """Generates text for many requests at once through paged KV memory.

    Args:
        config: what to run and how.
        progress: called while files are fetched, weights loaded and kernels compiled; on a GPU in later steps too, when
            one is captured as a graph.
        recorder: sees every plan.
        executor: runs the plans; by default the one that ``config`` asks for is made.

    Raises:
        ConfigError: the configuration cannot be honoured on this machine or with this model.
        ModelError: the model cannot be found or used.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        progress: Progress | None = None,
        recorder: Recorder | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        folder = resolve_model(self.config.model, self.config.revision, progress)
        self.tokenizer = Tokenizer.load(_tokenizer_folder(self.config.tokenizer, progress) or folder)
        if executor is None:
            # By name, for torch is imported with it, and only when an engine is really made.
            factory = importlib.import_module("octavo.executor.factory")
            executor = cast(Executor, factory.create_executor(self.config, folder, progress))
        self._executor = executor
        self.facts: ModelFacts = executor.facts
        self.scheduler = Scheduler(SchedulerConfig.of(self.config, self.facts))
        if recorder is not None:
            recorder.begin(self.scheduler.config)
        self._admission = Admission(
            self.facts, self.tokenizer, generation_defaults(folder), self.config, self.scheduler.config.depth
        )
        self._builder = OutputBuilder(self.tokenizer)
        self._recorder = recorder
        self._in_flight: deque[tuple[StepPlan, Handle]] = deque()
        # For a later step() to return: outputs of requests that have ended, and the latest of each that has not.
        self._ended: list[RequestOutput] = []
        self._growing: dict[str, RequestOutput] = {}
        self._retained = RetainedRequests(self.config.retained_requests)
        self._unread: set[str] = set()  # requests of a generate(): nobody looks at them before they end
        self._ids = itertools.count()
        self._failure: BaseException | None = None
        self._stats = EngineStats()
        self._preemptions_before = self._failures_before = 0
        self._tiers_before = (0, 0)  # blocks demoted and promoted

    # -- the loop, by hand -------------------------------------------------------------------------------------

    def add_request(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        user: str | None = None,
        cache_salt: str | None = None,
    ) -> str:
        """Queue a request; :meth:`step` computes it together with all others.

        Args:
            prompt: text, or token ids.
            params: how to continue it [the model's defaults].
            request_id: a name of your own, unique among live requests.
            priority: lower is more urgent; other than 0 only under ``policy="priority"``.
            user: whose request it is.
            cache_salt: only requests with the same salt share cached prefixes.

        Returns:
            the request's id.

        Raises:
            RequestError: it cannot be served; nothing was changed.
            EngineError: the engine has failed, or was closed.
        """
        request = self._prepare(prompt, params, request_id, priority, user, cache_salt)
        self.scheduler.add(request)
        return request.id

    def fork_request(
        self,
        request_id: str,
        at: int | None = None,
        params: SamplingParams | None = None,
        *,
        index: int | None = None,
    ) -> str:
        """Go on from a request in another way: a new request whose prompt is the other one's first tokens. Both go
        their own ways from here on.

        The fork of a running request shares its memory, the partly filled last block included: whoever writes into
        that first copies it. What is not computed yet is computed. The fork of one that has ended, waits or was
        preempted begins like any request: with what the prefix cache has of its tokens. It has the priority, user and
        salt of the other one, and its seed with a new noise index, so that it draws differently.
        (Forking is how the PagedAttention paper shares memory: Kwon et al., SOSP '23.)

        Args:
            request_id: a live request, or one of the last ``EngineConfig.retained_requests`` that ended.
            at: how many of its tokens, the prompt included, are the fork's prompt [all so far].
            params: how to continue; ``max_tokens`` counts from there [the other's, but ``n`` and ``best_of``, which are
                1, and ``prompt_logprobs``].
            index: which of its outputs, where it has several.

        Returns:
            the new request's id. Its output has those tokens as ``prompt_token_ids``, and new ones alone as output.

        Raises:
            UnknownRequestError: no such request is live or remembered.
            RequestError: ``at`` or ``index`` is out of range, or the fork cannot be served; nothing was changed.
            UnsupportedError: it is a beam search that has not ended.
        """
        self._check_alive()
        live = self.scheduler.requests.get(request_id)
        origin = self._retained.find(request_id) if live is None else Origin.of(live, live=True)
        if origin is None:
            raise UnknownRequestError(
                f"no request {request_id!r} is live or among the last {self._retained.limit} that ended "
                "(EngineConfig.retained_requests)"
            )
        line, length = origin.choose(index, at)
        request = self._prepare(
            origin.lines[line][:length],
            origin.params.for_fork() if params is None else params,
            priority=origin.priority,
            user=origin.user,
            cache_salt=origin.salt,
            origin=origin,
            source=origin.sequences[line] if origin.sequences else None,
        )
        self.scheduler.add(request)
        return request.id

    def step(self) -> list[RequestOutput]:
        """Plan a step, run it, and return what has changed: one output for each request with new tokens, or that has
        ended. A request's text only ever grows. Ctrl-C takes effect when the step is done, and loses nothing.

        Raises:
            EngineError: the executor failed; the engine cannot go on.
        """
        self._check_alive()
        with InterruptsHeld() as interrupts:
            try:
                outputs = self._step()
            except BaseException as error:  # half a step: nobody knows what the executor has done of it
                self._failure = error
                if isinstance(error, Exception):
                    raise EngineError(f"a step failed: {error}") from error
                raise
            if interrupts.pending:
                self.keep_outputs(outputs)
        return outputs

    def _step(self) -> list[RequestOutput]:
        plan = self.scheduler.schedule()
        if self._recorder is not None:
            self._recorder.write(plan)
        self._in_flight.append((plan, self._executor.submit(plan)))
        fresh: list[RequestOutput] = []
        while len(self._in_flight) > (self.scheduler.config.depth if plan.chunks else 0):
            fresh += self._commit(*self._in_flight.popleft())
        if not self._ended and not self._growing:
            return fresh
        self.keep_outputs(fresh)
        outputs = [*self._ended, *self._growing.values()]
        self._ended, self._growing = [], {}
        return outputs

    def _check_alive(self) -> None:
        if self._failure is not None:
            raise EngineError(f"the engine cannot go on: {self._failure}") from self._failure

    def has_unfinished(self) -> bool:
        """Whether :meth:`step` has anything left to do or to return."""
        return bool(self.scheduler.requests or self._in_flight or self._ended or self._growing)

    def abort_request(self, request_id: str) -> RequestOutput:
        """Withdraw a live request; its memory is free at once.

        Returns:
            the request as it stood, its outputs ended with reason "abort".

        Raises:
            UnknownRequestError: no live request has this id.
        """
        request = self.scheduler.abort(request_id)
        self._growing.pop(request_id, None)
        request.finished_at = time.monotonic()
        self._retained.keep(request)
        return self._builder.build(request, finished=True)

    def withdraw(self, request_ids: Set[str]) -> None:
        """Abort those of the requests that are live, and forget outputs kept of any of them."""
        for name in request_ids & self.scheduler.requests.keys():
            self.abort_request(name)
        self._ended = [output for output in self._ended if output.request_id not in request_ids]

    def keep_outputs(self, outputs: Iterable[RequestOutput]) -> None:
        """Hand back outputs of requests that are not yours; the next :meth:`step` returns them (of a request that goes
        on, the latest alone)."""
        for output in outputs:
            if output.finished:
                self._growing.pop(output.request_id, None)
                self._ended.append(output)
            else:
                self._growing[output.request_id] = output

    def _prepare(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        request_id: str | None = None,
        priority: int = 0,
        user: str | None = None,
        cache_salt: str | None = None,
        origin: Origin | None = None,
        source: TokenSequence | None = None,
    ) -> Request:
        self._check_alive()
        if request_id is None:
            request_id = next(name for name in map(str, self._ids) if name not in self.scheduler.requests)
        elif request_id in self.scheduler.requests:
            raise RequestError(f"request_id={request_id!r} is live already: choose another")
        request = self._admission.request(
            prompt,
            params,
            request_id=request_id,
            arrival=time.monotonic(),
            priority=priority,
            user=user,
            cache_salt=cache_salt,
            origin=origin,
            source=source,
        )
        self.scheduler.check(request)
        return request

    def _commit(self, plan: StepPlan, handle: Handle) -> list[RequestOutput]:
        result = self._executor.collect(handle)
        now = time.monotonic()
        for init in plan.init:
            admitted = self.scheduler.requests.get(init.request_id)
            if admitted is not None and admitted.first_scheduled is None:
                admitted.first_scheduled = now - result.elapsed
        changed: dict[str, Request] = {}
        for seq in self.scheduler.commit(plan, result):
            request = seq.request
            if request.params.beam_width == 1:
                stop = take_in(self._builder, seq)
                if stop is not None:
                    self.scheduler.stop(seq, FinishReason.STOP, stop)
                    seq.finish_reason, seq.stop_reason = FinishReason.STOP, stop
            if request.first_token is None and len(seq.tokens) > seq.num_prompt:
                request.first_token = now
            changed[request.id] = request
        self._stats.count(plan, result)
        if plan.chunks:
            self._stats.sample_memory(self.scheduler.memory, list(self.scheduler.sequences()))
        live = self.scheduler.requests
        ended = [(request, request.id not in live) for request in changed.values()]
        return [self._output(request, end, now) for request, end in ended if end or request.id not in self._unread]

    def _output(self, request: Request, finished: bool, now: float) -> RequestOutput:
        if finished:
            request.finished_at = now
            self._stats.num_cached_tokens += request.num_cached
            self._stats.num_shared_blocks += request.num_shared
            self._retained.keep(request)
        return self._builder.build(request, finished)

    # -- whole batches -----------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool | Advance = False,
        **keywords: Any,
    ) -> list[RequestOutput]:
        """Continue every prompt, all of them at once, and return the outputs in the prompts' order.

        Args:
            prompts: one prompt (text or token ids), or a list of them.
            params: for all, or one for each prompt [the model's defaults].
            progress: show a bar on stderr (log lines where that is no terminal), or report to an object of yours.
            keywords: fields of :class:`~octavo.request.SamplingParams`, over ``params``.

        Raises:
            RequestError: a prompt cannot be served; none of them was begun.
        """
        batch = _as_batch(prompts)
        each = _params_for(batch, params, keywords)
        requests = [self._prepare(prompt, given) for prompt, given in zip(batch, each, strict=True)]
        return self._run(requests, _display(progress))

    def _run(self, requests: list[Request], display: Advance | None) -> list[RequestOutput]:
        """Step until these are done. Outputs of other live requests are kept for a later ``step()``."""
        mine = {request.id for request in requests}
        finished: dict[str, RequestOutput] = {}
        try:
            self._unread |= mine
            for request in requests:
                self.scheduler.add(request)
            while len(finished) < len(mine):
                others: list[RequestOutput] = []
                for output in self.step():
                    if output.request_id not in mine:
                        others.append(output)
                    elif output.finished:
                        finished[output.request_id] = output
                self.keep_outputs(others)
                for request in requests:
                    if request.id not in finished and request.id not in self.scheduler.requests:
                        finished[request.id] = self._builder.build(request, finished=True)  # somebody withdrew it
                if display is not None:
                    tokens = sum(len(seq.tokens) - seq.num_prompt for request in requests for seq in request.sequences)
                    display.update(len(finished), len(mine), tokens)
        finally:
            self._unread -= mine
            self.withdraw(mine - finished.keys())  # interrupted: nothing of the call stays behind
        return [finished[request.id] for request in requests]

    # -- looking in --------------------------------------------------------------------------------------------

    def stats(self) -> EngineStats:
        """Totals so far."""
        self._stats.num_preemptions = self.scheduler.residency.num_preemptions - self._preemptions_before
        self._stats.num_out_of_blocks = self.scheduler.num_out_of_blocks - self._failures_before
        cache = self.scheduler.memory.host_cache
        if cache is not None:
            demoted, promoted = self._tiers_before
            self._stats.num_demoted = cache.num_demoted - demoted
            self._stats.num_promoted = cache.num_promoted - promoted
        return self._stats

    def reset_stats(self) -> None:
        """Count from zero (after a warm-up, say)."""
        self._stats = EngineStats()
        self._preemptions_before = self.scheduler.residency.num_preemptions
        self._failures_before = self.scheduler.num_out_of_blocks
        cache = self.scheduler.memory.host_cache
        if cache is not None:
            self._tiers_before = (cache.num_demoted, cache.num_promoted)

    def memory_snapshot(self) -> MemorySnapshot:
        """Every block of the pool, and whose it is."""
        return self.scheduler.memory.snapshot(self.scheduler.sequences())

    def reset_prefix_cache(self) -> int:
        """Forget all cached prefixes that no live request holds; returns how many blocks that were."""
        return self.scheduler.memory.reset_prefix_cache()

    def close(self) -> None:
        """Withdraw what is live, and give weights and memory back."""
        for name in list(self.scheduler.requests):
            self.abort_request(name)
        self._in_flight.clear()
        self._ended, self._growing = [], {}
        self._executor.close()
        self._failure = EngineError("it was closed")

    def __enter__(self) -> LLMEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _tokenizer_folder(name: str | None, progress: Progress | None) -> Path | None:
    if name is None:
        return None
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else resolve_model(name, progress=progress)  # a tokenizer needs no config.json


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray | Mapping | Set):
        raise RequestError(f"prompts must be a prompt or a list of prompts, not {type(prompts).__name__}")
    batch: list[Any] = list(prompts)
    if batch and not any(isinstance(item, str | Iterable) for item in batch):
        return [cast(list[int], batch)]  # one prompt of token ids
    return batch


def _params_for(
    batch: list[Prompt], params: SamplingParams | Sequence[SamplingParams] | None, keywords: dict[str, Any]
) -> list[SamplingParams | None]:
    if params is None or isinstance(params, SamplingParams):
        return [sampling_params(params, keywords)] * len(batch)
    given = list(params)
    if len(given) != len(batch):
        raise RequestError(f"{len(given)} sampling parameters for {len(batch)} prompts: give one for all, or one each")
    return [sampling_params(item, keywords) for item in given]


def _display(progress: bool | Advance) -> Advance | None:
    if progress is True:
        from octavo.engine.progress import Bar

        return Bar()
    return None if progress is False else progress
