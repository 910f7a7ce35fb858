"""The executor that computes: a plan's chunks through the decoder, then the sampler."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from octavo import kernels as kernel_backends
from octavo.config import EngineConfig
from octavo.errors import EngineError
from octavo.executor.backend import choose_backend
from octavo.executor.batch import Batch, build_batch
from octavo.executor.kv_memory import describe_kv, kv_layout
from octavo.executor.machine import default_threads, memory
from octavo.executor.measured_facts import measured_facts
from octavo.executor.memory_plan import MemoryPlan, plan_memory
from octavo.executor.prompt_scores import ScoredChunk, score_prompt, scored_chunks
from octavo.executor.reads import Reads
from octavo.executor.sampler import NOT_FINITE, Sampler
from octavo.executor.slots import SlotTable
from octavo.executor.swap_space import SwapSpace
from octavo.hub import Progress, eos_token_ids
from octavo.model import Decoder, load_model
from octavo.plan import ChunkResult, Handle, ModelFacts, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class Step:
    """A step on the CPU: done by the time ``submit`` returns."""

    result: StepResult


class TorchExecutor:
    """Runs plans with torch on a CPU.

    The cache is one tensor of pages; what a sequence needs between steps lies in the columns of a
    :class:`~octavo.executor.slots.SlotTable`, so that a step moves only what changed.

    Args:
        config: the engine's configuration.
        folder: the model, in Hugging Face layout.
        progress: called while weights are loaded and kernels compiled.

    Raises:
        ConfigError: the configuration and the memory, or the model, do not go together.
        ModelError: the model cannot be used.
    """

    def __init__(self, config: EngineConfig, folder: Path, progress: Progress | None = None) -> None:
        self._kernels = kernel_backends.load(choose_backend(config).name)
        self._kernels.set_num_threads(config.num_threads or default_threads())
        self._decoder = load_model(
            folder,
            dtype=config.dtype,
            kernels=self._kernels,
            batch_invariant=config.batch_invariant,
            linear_kind=config.linear_kind,
            quantization=config.quantization,
            progress=progress,
        )
        self._kernels.warm_up(progress)
        model, weights = self._decoder.config, self._decoder.weights_bytes
        groups = model.layer_groups
        layout = kv_layout(config, model, self._decoder.dtype)
        self.memory_plan: MemoryPlan = plan_memory(
            available_bytes=memory()[1] + weights,
            weights_bytes=weights,
            page_bytes=layout.page_bytes,
            model_max_len=model.context_length,
            config=config,
            groups=groups,
        )
        plan = self.memory_plan
        kv_notes = (f"KV memory in {describe_kv(layout, self._decoder.dtype)}",) if layout.is_quantized else ()
        self._cache = layout.allocate(plan.num_blocks)
        self._kv = layout.view(self._cache)
        self._swap_space = SwapSpace(plan.num_host_blocks, layout.page_bytes)
        self._block_size = config.block_size
        width = -(-plan.max_model_len // config.block_size)
        self._slots = SlotTable(config.max_num_seqs, len(groups), width, model.vocab_size)
        self._sampler = Sampler(self._kernels, self._slots)
        self._closed = False
        self._facts = ModelFacts(
            num_blocks=plan.num_blocks,
            max_model_len=plan.max_model_len,
            vocab_size=model.vocab_size,
            eos_token_ids=eos_token_ids(folder),
            groups=groups,
            page_bytes=layout.page_bytes,
            flops_per_token=model.flops_per_token,
            attention_flops=model.attention_flops,
            notes=(*plan.notes, *kv_notes, *self._decoder.notes),
        )
        self._facts = measured_facts(self, config, self._swap_space, self._cache)

    @property
    def facts(self) -> ModelFacts:
        """The model and its memory."""
        return self._facts

    @property
    def decoder(self) -> Decoder:
        """The model."""
        return self._decoder

    def submit(self, plan: StepPlan) -> Step:
        """Run a plan: release, swap_out, copies, swap_in, init, chunks.

        Raises:
            EngineError: the plan does not follow from the plans before it, or the executor is closed.
        """
        if self._closed:
            raise EngineError("the executor is closed")
        began = time.perf_counter()
        with torch.inference_mode():
            self._move(plan)
            results = self._compute(plan) if plan.chunks else ()
        return Step(StepResult(plan.step, results, time.perf_counter() - began))

    def collect(self, handle: Handle) -> StepResult:
        """What came of a submitted plan."""
        return cast(Step, handle).result

    def close(self) -> None:
        """Give the weights and the cache back; nothing can be submitted after."""
        self._closed = True
        for name in ("_decoder", "_cache", "_kv", "_swap_space", "_sampler", "_slots"):
            self.__dict__.pop(name, None)

    def _move(self, plan: StepPlan) -> None:
        for slot in plan.released:
            self._slots.release(slot)
        if plan.swap_out:
            self._swap_space.swap_out(self._cache, plan.swap_out)
        if plan.copies:
            _, sources, targets = zip(*plan.copies, strict=True)
            self._kernels.copy_blocks(self._cache, torch.tensor(sources), torch.tensor(targets))
        if plan.swap_in:
            self._swap_space.swap_in(self._cache, plan.swap_in)
        for init in plan.init:
            self._slots.take(init)

    def _compute(self, plan: StepPlan) -> tuple[ChunkResult, ...]:
        batch = build_batch(plan.chunks, self._slots, self._block_size)
        reads = Reads.of(batch)
        scored = scored_chunks(batch, self._slots)
        if scored:
            return self._compute_scored(batch, reads, scored)
        rows = None if len(reads.rows) == len(batch.token_ids) else torch.from_numpy(reads.rows)
        logits = self._decoder.forward(batch.token_ids, self._kv, batch.meta, rows)
        return tuple(self._sample(batch, reads, logits))

    def _compute_scored(self, batch: Batch, reads: Reads, scored: list[ScoredChunk]) -> tuple[ChunkResult, ...]:
        """A step in which prompts are scored: the head runs apart from the rest, on a bounded number of rows."""
        rows = np.concatenate([reads.rows, *(np.arange(chunk.row, chunk.row + len(chunk.tokens)) for chunk in scored)])
        hidden = self._decoder.hidden(batch.token_ids, self._kv, batch.meta, torch.from_numpy(rows))
        begin = len(reads.rows)
        results = self._sample(batch, reads, self._decoder.logits(hidden[:begin]))
        for chunk in scored:
            end = begin + len(chunk.tokens)
            samples = score_prompt(chunk, hidden[begin:end], self._decoder.logits, self._kernels)
            if samples is None:
                results[chunk.index] = ChunkResult(error=NOT_FINITE)
            else:
                results[chunk.index] = results[chunk.index]._replace(prompt=samples)
            begin = end
        return tuple(results)

    def _sample(self, batch: Batch, reads: Reads, logits: torch.Tensor) -> list[ChunkResult]:
        if not len(reads.rows):
            return [ChunkResult()] * len(batch.wants)
        drawn = self._sampler.run(logits, reads.slots, reads.positions, reads.wants, reads.draws)
        return reads.gather(batch, drawn, self._slots)
