"""The executor that computes on a GPU, and lets nobody wait for it but :meth:`GpuExecutor.collect`."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from octavo import kernels as kernel_backends
from octavo.config import EngineConfig
from octavo.errors import EngineError
from octavo.executor.backend import choose_backend
from octavo.executor.gpu.accelerator import Accelerator, CudaAccelerator
from octavo.executor.gpu.columns import ChunkColumns
from octavo.executor.gpu.draws import Draws
from octavo.executor.gpu.graphs import GraphLadder, ladder_sizes
from octavo.executor.gpu.inputs import StepInputs
from octavo.executor.gpu.memory import Profile, first_pool, fitting, plan_gpu_memory, profile, too_small
from octavo.executor.gpu.parts import NothingRead, halves, joined
from octavo.executor.gpu.prompt_scores import ScoredPrompt, score, scored_prompts
from octavo.executor.gpu.readings import PlainReading, PlainResults, Reading
from octavo.executor.gpu.relief import MemoryRelief
from octavo.executor.gpu.results import Outbox, Parcel
from octavo.executor.gpu.sampler import DeviceSampler, DrawRows, Needs
from octavo.executor.gpu.state import DeviceSlots
from octavo.executor.gpu.swap import PinnedSwapSpace
from octavo.executor.kv_memory import describe_kv, kv_layout
from octavo.executor.machine import memory
from octavo.executor.measured_facts import measured_facts
from octavo.executor.memory_plan import MemoryPlan
from octavo.hub import Progress, eos_token_ids
from octavo.kernels.drawn import Drawn
from octavo.model import Decoder, load_model
from octavo.plan import Chunk, ChunkResult, Handle, ModelFacts, StepPlan, StepResult

_BUILT = (
    *("_ladder", "_cache", "_kv", "_swap_space", "_slots", "_inputs", "_logits", "_tokens", "_outcome", "_logprobs"),
    *("_failures", "_sampler", "_relief"),
)
"""What is made once for a trial and then to last."""


@dataclass(slots=True)
class Step:
    """A step under way."""

    number: int
    submitted: float  #: when, in seconds of the wall clock
    parts: tuple[Part, ...] = ()  #: one, but where memory ran out


class Part(NamedTuple):
    """What a part of a step will bring."""

    chunks: tuple[Chunk, ...]
    parcel: Parcel | None  #: None: nothing is read back
    reading: PlainReading | Reading | NothingRead

    def results(self) -> tuple[ChunkResult, ...]:
        """Wait for it; one for each chunk."""
        return self.reading.results([] if self.parcel is None else self.parcel.open())


class GpuExecutor:
    """Runs plans on a GPU.

    A step is queued and left to itself: its tokens feed the next one where they are, and come to the host on a stream
    of their own. Steps in which every sequence draws one token run from captured graphs.

    Args:
        config: the engine's configuration.
        folder: the model, in Hugging Face layout.
        progress: called while weights are loaded, kernels compiled and, in later steps too, graphs captured.
        accelerator: the device [the current CUDA device].
        kernels: the backend [as configured].

    Raises:
        ConfigError: the configuration and the memory, or the model, do not go together, or there is no GPU.
        ModelError: the model cannot be used.
    """

    def __init__(
        self,
        config: EngineConfig,
        folder: Path,
        progress: Progress | None = None,
        accelerator: Accelerator | None = None,
        kernels: ModuleType | None = None,
    ) -> None:
        self._accelerator = accelerator = accelerator or CudaAccelerator()
        device = accelerator.device
        self._kernels = kernels or kernel_backends.load(choose_backend(config).name)
        self._decoder = fitting(
            accelerator,
            "hold the model's weights",
            "choose a smaller model or dtype",
            lambda: load_model(
                folder,
                dtype=config.dtype,
                device=device,
                kernels=self._kernels,
                batch_invariant=config.batch_invariant,
                linear_kind=config.linear_kind,
                quantization=config.quantization,
                progress=progress,
            ),
        )
        self._kernels.warm_up(progress)
        model, self._block_size = self._decoder.config, config.block_size
        self._layout = kv_layout(config, model, self._decoder.dtype)
        self._vocab_size, self._max_tokens = model.vocab_size, config.max_num_batched_tokens
        self._progress = progress
        self._outbox = Outbox(accelerator)
        self._plain = PlainResults()
        self._collected = 0.0
        self._closed = False
        self._facts = ModelFacts(
            num_blocks=0,
            max_model_len=0,
            vocab_size=model.vocab_size,
            eos_token_ids=eos_token_ids(folder),
            groups=model.layer_groups,
            page_bytes=self._layout.page_bytes,
            flops_per_token=model.flops_per_token,
            attention_flops=model.attention_flops,
            depth=config.depth or 0,
        )
        self.memory_plan = self._planned(config)
        self._furnish(config, self.memory_plan)
        self._facts = measured_facts(self, config, self._swap_space, self._cache)

    def _planned(self, config: EngineConfig) -> MemoryPlan:
        """Measure on a few blocks what everything but the pool takes, and plan the pool."""
        accelerator, model, page_bytes = self._accelerator, self._decoder.config, self._layout.page_bytes
        groups, length = model.layer_groups, model.context_length
        num_blocks, context = first_pool(config, groups, length)
        if self._progress is not None:
            self._progress("measuring the largest step", 0, 0)
        remedy = f"lower max_num_batched_tokens={config.max_num_batched_tokens} or max_num_seqs={config.max_num_seqs}"

        def measure() -> Profile:
            self._build(config, num_blocks, context, 0, accelerator.memory().total)
            return profile(self, accelerator, self._ladder, config, (num_blocks + 1) * page_bytes)

        found = fitting(accelerator, "compute the largest step", remedy, measure)
        if self._relief.reason is not None:
            raise too_small(accelerator, "compute the largest step", remedy, self._relief.reason)
        self._clear(_BUILT)
        accelerator.memory()  # gives back to the system what is free now
        self._graph_bytes = found.graph_bytes
        return plan_gpu_memory(
            found,
            weights_bytes=self._decoder.weights_bytes,
            page_bytes=page_bytes,
            model_max_len=length,
            config=config,
            groups=groups,
            host_bytes=memory()[1],
        )

    def _furnish(self, config: EngineConfig, plan: MemoryPlan) -> None:
        """Make all that lasts, as planned."""
        fitting(
            self._accelerator,
            f"hold a pool of {plan.num_blocks} blocks",
            "lower gpu_memory_utilization or num_blocks",
            lambda: self._build(config, plan.num_blocks, plan.max_model_len, plan.num_host_blocks, self._graph_bytes),
        )
        dtype = self._decoder.dtype
        kv_notes = (f"KV memory in {describe_kv(self._layout, dtype)}",) if self._layout.is_quantized else ()
        self._facts = replace(self._facts, notes=(*plan.notes, *kv_notes, *self._decoder.notes))

    def _build(
        self, config: EngineConfig, num_blocks: int, max_model_len: int, num_host_blocks: int, graph_bytes: int
    ) -> None:
        """The pool, and all whose size depends on it or on the largest batch."""
        accelerator, decoder, model = self._accelerator, self._decoder, self._decoder.config
        device, layout, groups = accelerator.device, self._layout, model.layer_groups
        self._cache = layout.allocate(num_blocks + 1, device)  # the last one is where fillers write
        self._kv = layout.view(self._cache)
        self._swap_space = PinnedSwapSpace(accelerator, num_host_blocks, layout.page_bytes)
        width = -(-max_model_len // config.block_size)
        self._slots = DeviceSlots(config.max_num_seqs, len(groups), width, num_blocks, device)
        rows = min(config.max_num_seqs, self._max_tokens)
        self._inputs = StepInputs(accelerator, self._slots, config.block_size, rows, self._max_tokens, max_model_len)
        decoder.reserve(self._max_tokens, max_model_len)
        # What captured steps leave behind. Samplers read logits of any dtype; a softcap wants float32.
        wide = torch.float32 if model.logit_softcap else decoder.dtype
        self._logits = torch.empty(rows, model.vocab_size, dtype=wide, device=device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)  # that were computed
        self._outcome = torch.zeros(2, rows, dtype=torch.int64, device=device)  # their tokens, and what failed
        self._logprobs = torch.zeros(rows, device=device)
        self._failures = torch.zeros(rows, dtype=torch.int32, device=device)
        self._sampler = DeviceSampler(self._kernels, config.max_num_seqs, model.vocab_size, device)
        sizes = ladder_sizes(rows) if config.cuda_graphs else ()
        self._ladder = GraphLadder(accelerator, sizes, graph_bytes, self._progress)
        self._relief = MemoryRelief(accelerator, self._ladder)
        self._facts = replace(self._facts, num_blocks=num_blocks, max_model_len=max_model_len)

    @property
    def facts(self) -> ModelFacts:
        """The model and its memory."""
        return self._facts

    @property
    def decoder(self) -> Decoder:
        """The model."""
        return self._decoder

    def submit(self, plan: StepPlan) -> Step:
        """Queue a plan: release, swap_out, copies, swap_in, init, chunks. Returns while the device is at work.

        Raises:
            EngineError: the plan does not follow from the plans before it, or the executor is closed.
        """
        if self._closed:
            raise EngineError("the executor is closed")
        step = Step(plan.step, time.perf_counter())
        with torch.inference_mode():
            self._move(plan)
            if plan.chunks:
                if plan.num_tokens > self._max_tokens:
                    raise EngineError(f"a step of {plan.num_tokens} tokens: there is room for {self._max_tokens}")
                step.parts = tuple(self._compute(plan.chunks))
        return step

    def collect(self, handle: Handle) -> StepResult:
        """Wait for a submitted plan, and take what came of it. Its time counts from when it was submitted, or from when
        the one before it was done."""
        step = cast(Step, handle)
        with torch.inference_mode():
            results = tuple(chain.from_iterable(part.results() for part in step.parts))
        if len(step.parts) > 1:
            results = joined([chunk for part in step.parts for chunk in part.chunks], results)
        began, self._collected = max(step.submitted, self._collected), time.perf_counter()
        return StepResult(step.number, results, self._collected - began)

    def close(self) -> None:
        """Give the weights and the cache back; nothing can be submitted after."""
        if not self._closed:
            with torch.inference_mode():
                self._accelerator.synchronize()
        self._closed = True
        self._clear((*_BUILT, "_decoder", "_outbox"))

    def _clear(self, names: tuple[str, ...]) -> None:
        for name in names:
            self.__dict__.pop(name, None)

    def _move(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._slots.release(slot)
            self._sampler.release(slot)
        if plan.swap_out:
            self._swap_space.swap_out(self._cache, plan.swap_out)
        if plan.copies:
            _, sources, targets = zip(*plan.copies, strict=True)
            self._swap_space.before_writing(targets)
            sources_, targets_ = self._inputs.send_moves(np.array(sources), np.array(targets))
            self._kernels.copy_blocks(self._cache, sources_, targets_)
        if plan.swap_in:
            self._swap_space.swap_in(self._cache, plan.swap_in)
        for init in plan.init:
            self._slots.take(init)
            self._relief.attempt(partial(self._sampler.take, init))

    def _compute(self, chunks: tuple[Chunk, ...]) -> list[Part]:
        """Compute chunks at once; where memory does not suffice, in parts; and whom it does not suffice for alone gets
        an error."""
        number = sum(chunk.count for chunk in chunks)
        if self._relief.allows(number):
            try:
                return self._compute_at_once(chunks)
            except Exception as error:
                if not self._relief.is_due(error):
                    raise
                reason = str(error)
            self._relief.limit(number, reason)
        divided = halves(chunks)
        if divided is None:
            return [self._without(chunks)]
        return [part for half in divided for part in self._compute(half)]

    def _compute_at_once(self, chunks: tuple[Chunk, ...]) -> list[Part]:
        columns = ChunkColumns.of(chunks, self._slots, self._block_size)
        if self._swap_space.is_reading:
            self._swap_space.before_writing(columns.blocks.tolist())
        if columns.draws_once and self._inputs.fits(columns):
            return self._decode(columns)
        return [self._relief.attempt(partial(self._mixed, columns))]

    def _without(self, chunks: tuple[Chunk, ...]) -> Part:
        """Chunks that could not be computed: their requests fail, alone. (The next step may have been planned with
        them.)"""
        self._slots.sampled[[chunk.slot for chunk in chunks]] = True
        return Part(chunks, None, NothingRead(len(chunks)))

    # -- steps in which each sequence draws one token ------------------------------------------------------------

    def _decode(self, columns: ChunkColumns) -> list[Part]:
        number = len(columns.chunks)
        needs = self._sampler.needs(columns.slots)
        size = self._ladder.size_for(number)
        is_plain = needs.is_plain and not self._slots.reports[columns.slots].any()
        kept = self._relief.attempt(partial(self._run_decode, columns, size))
        self._slots.sampled[columns.slots] = True
        if is_plain:
            return [Part(columns.chunks, self._outbox.post([kept]), PlainReading(self._plain, number))]
        return self._draw_again(columns, 0, number)

    def _run_decode(self, columns: ChunkColumns, size: int) -> torch.Tensor:
        """Send and run a decode step. What it leaves in ``_outcome``, copied: the next step's comes to the same place,
        perhaps before this has left."""
        self._inputs.send_decode(columns, size)
        self._sampler.flush()
        kept = torch.empty((2, len(columns.chunks)), dtype=torch.int64, device=self._outcome.device)
        self._ladder.run(size, partial(self._decode_step, size))
        return kept.copy_(self._outcome[:, : len(columns.chunks)])

    def _decode_step(self, size: int) -> None:
        """A decode step of ``size`` rows, of which those that fill up compute on memory that is nobody's: from what was
        sent last to ``_outcome``. It waits for nothing, and finds and leaves everything where it always is: what a
        graph of this size captures."""
        batch, rows = self._inputs.decode_batch(size), self._inputs.decode_rows(size)
        self._tokens[:size].copy_(batch.token_ids)
        self._decoder.forward(batch.token_ids, self._kv, batch.meta, out=self._logits[:size])
        tokens, failures = self._outcome[:, :size]
        drawn = Drawn(tokens, self._logprobs[:size], self._failures[:size])
        self._sampler.draw(self._logits[:size], DrawRows(rows.slots, rows.indexes, rows.ends), drawn)
        failures.copy_(drawn.failures)
        self._slots.last_token.index_copy_(0, rows.owners, tokens)

    def _draw_again(self, columns: ChunkColumns, begin: int, end: int) -> list[Part]:
        """After a decode step some of whose sequences want more than a plain draw: all that these rows want; in parts
        where memory does not suffice."""
        chunks = columns.chunks[begin:end]
        try:
            return [self._relief.attempt(partial(self._draw_rows, chunks, columns.slots[begin:end], begin))]
        except Exception as error:
            if not self._relief.is_due(error):
                raise
        if end - begin == 1:
            return [self._without(chunks)]
        middle = (begin + end) // 2
        return [*self._draw_again(columns, begin, middle), *self._draw_again(columns, middle, end)]

    def _draw_rows(self, chunks: tuple[Chunk, ...], slots: NDArray[np.int64], begin: int) -> Part:
        end, state, needs = begin + len(chunks), self._slots, self._sampler.needs(slots)
        rows = self._inputs.decode_rows(end)
        draws = DrawRows(rows.slots[begin:], rows.indexes[begin:], rows.ends[begin:])
        if needs.edited:
            self._sampler.observe(self._tokens[begin:end], draws.slots, rows.positions[begin:])
        drawn = self._sampler.run(self._logits[begin:end], draws, needs)
        specs = tuple([state.spec[chunk.slot] for chunk in chunks])
        spans = tuple((row, row + 1) for row in range(len(chunks)))
        reading = Reading(chunks, specs, spans, range(len(chunks)), needs.reported, (False,) * len(chunks), False)
        parcel = self._outbox.post([each for each in drawn if each is not None])
        state.last_token.index_copy_(0, rows.owners[begin:], drawn.tokens)
        return Part(chunks, parcel, reading)

    # -- any other step ------------------------------------------------------------------------------------------

    def _mixed(self, columns: ChunkColumns) -> Part:
        state, sampler = self._slots, self._sampler
        draws, prompts = Draws.of(columns, state), scored_prompts(columns, state)
        specs = tuple([state.spec[chunk.slot] for chunk in columns.chunks])
        single = tuple([bool(chunk.drafts) and sampler.looks_back(chunk.slot) for chunk in columns.chunks])
        needs = sampler.needs(draws.owners[: draws.num_drawn])
        arrays = [
            np.concatenate([draws.rows, *(prompt.rows for prompt in prompts)]),
            draws.owners,
            draws.ends,
            draws.sources,
            draws.indexes,
            draws.own,
            _observed(columns),
            *(prompt.tokens for prompt in prompts),
        ]
        batch, sent = self._inputs.send_mixed(columns, arrays)
        if sampler.needs(columns.slots).edited:
            sampler.observe(batch.token_ids, sent[6], batch.meta[0].positions)
        hidden = self._decoder.hidden(batch.token_ids, self._kv, batch.meta, sent[0])
        read = len(draws.rows)
        tensors, own = self._draw(draws, needs, hidden[:read], sent, max((spec.top for spec in specs), default=0))
        scores = self._score(prompts, hidden[read:], sent[7:])
        reading = Reading(
            columns.chunks,
            specs,
            draws.spans,
            draws.sources.tolist(),
            needs.reported,
            single,
            draws.num_beams > 0,
            [(prompt, len(found)) for prompt, found in zip(prompts, scores, strict=True)],
        )
        parcel = self._outbox.post([*tensors, *chain.from_iterable(scores)])
        if own is not None:  # last of all, and without new memory: up to here the step can be done again
            self._slots.last_token.index_copy_(0, *own)
        return Part(columns.chunks, parcel, reading)

    def _draw(
        self, draws: Draws, needs: Needs, hidden: torch.Tensor, sent: list[torch.Tensor], top: int
    ) -> tuple[list[torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]:
        """Draw from rows after the last norm. What is to be sent to the host, as :meth:`Reading.results` takes it; and
        the slots whose last samples these are, with the samples."""
        _, owners, ends, sources, indexes, own = sent[:6]
        number = draws.num_drawn
        tensors, last = [sources, sources, sources], None  # empty
        logits = self._decoder.logits(hidden)
        if number:
            slots = owners.index_select(0, sources)
            rows = DrawRows(slots, indexes, ends.index_select(0, sources), None if draws.once else sources)
            drawn = self._sampler.run(logits[:number], rows, needs)
            if len(draws.own):
                last = slots.index_select(0, own), drawn.tokens.index_select(0, own)
            tensors = [each for each in drawn if each is not None]
        if draws.num_beams:
            tensors += self._sampler.search(logits[number:], owners[number:], ends[number:], min(top, self._vocab_size))
        return tensors, last

    def _score(
        self, prompts: list[ScoredPrompt], hidden: torch.Tensor, tokens: list[torch.Tensor]
    ) -> list[list[torch.Tensor]]:
        found, begin = [], 0
        for prompt, own in zip(prompts, tokens, strict=True):
            rows = hidden[begin : begin + len(own)]
            found.append(score(prompt, own, rows, self._decoder.logits, self._kernels, self._vocab_size))
            begin += len(own)
        return found


def _observed(columns: ChunkColumns) -> NDArray[np.int64]:
    """The slot of each token, -1 where it is a draft: nobody knows yet whether it will stand."""
    slots = np.repeat(columns.slots, columns.counts)
    if any(columns.drafts):
        drafts = np.array(columns.drafts)
        after = np.repeat(columns.query_start[1:] - drafts, columns.counts)
        slots[np.arange(len(slots)) >= after] = -1
    return slots
