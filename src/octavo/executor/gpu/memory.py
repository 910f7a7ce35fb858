"""How many blocks a GPU gets: what is left of its memory when everything else has been seen to run.

Before there is a pool, the largest step is computed and the largest batch is decoded, on a few blocks for the time
being, and what they took is measured: a formula would have to know every kernel. (vLLM profiles its first step, too.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from octavo.config import EngineConfig, host_blocks
from octavo.errors import ConfigError
from octavo.executor.gpu.accelerator import Accelerator, DeviceMemory
from octavo.executor.gpu.graphs import GraphLadder
from octavo.executor.memory_plan import MemoryPlan, Room, fit_pool, size_in_words, stride_of, wanted_context
from octavo.model import ModelConfig
from octavo.plan import Chunk, Executor, LayerGroup, ModelFacts, SamplingSpec, SlotInit, StepPlan, Want

_EVERYTHING = SamplingSpec(
    top_k=50,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias=((0, 1.0),),
    logprobs=20,
    prompt_logprobs=20,
)
"""Of a sequence that asks for all that takes memory."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a model takes on a device beside its pool, in bytes, as measured."""

    total_bytes: int  #: the device's memory
    used_bytes: int  #: held by everybody: weights, buffers, compiled kernels, other processes
    step_bytes: int  #: more than that, in the midst of the largest step
    graph_bytes: int  #: that all graphs may take

    @property
    def taken_bytes(self) -> int:
        """All of it."""
        return self.used_bytes + self.step_bytes + self.graph_bytes


def first_pool(config: EngineConfig, groups: Sequence[LayerGroup], model_max_len: int) -> tuple[int, int]:
    """The blocks on which the largest step can be tried, and the context to try it for."""
    context = wanted_context(config, model_max_len)
    return len(groups) * -(-(_longest(config, context) + 1) // config.block_size), context


def profile(
    executor: Executor, accelerator: Accelerator, graphs: GraphLadder, config: EngineConfig, pool_bytes: int
) -> Profile:
    """Run the largest step and decode the largest and the smallest batch, and measure.

    Args:
        executor: with the blocks of :func:`first_pool`, which are written to, and nobody in its slots.
        accelerator: the device.
        graphs: what its decode steps are captured by; freed when this returns.
        config: the engine's.
        pool_bytes: size of those blocks.
    """
    steps = _Steps(executor.facts, config)
    accelerator.reset_peak()
    _run(executor, steps.prefill(0))
    step_bytes = accelerator.peak() - accelerator.allocated()  # what stays is among what is used
    _run(executor, steps.decode(1, steps.num_seqs))
    _run(executor, steps.decode(2, 1))
    _run(executor, StepPlan(3, (), released=tuple(range(steps.num_seqs))))
    graph_bytes = _graph_budget(graphs)
    graphs.free()
    memory = accelerator.memory()
    return Profile(memory.total, memory.used - pool_bytes, step_bytes, graph_bytes)


def plan_gpu_memory(
    found: Profile,
    *,
    weights_bytes: int,
    page_bytes: int,
    model_max_len: int,
    config: EngineConfig,
    groups: Sequence[LayerGroup],
    host_bytes: int,
) -> MemoryPlan:
    """Choose ``num_blocks`` and the served context, as :func:`octavo.executor.memory_plan.plan_memory` does for a CPU.

    The pool takes what ``gpu_memory_utilization`` of the device's memory leaves beside the profile, one block of which
    is nobody's.

    Args:
        found: what everything else takes.
        weights_bytes: size of the weights.
        page_bytes: size of one block of one group.
        model_max_len: the longest context the model was made for, in tokens.
        config: the engine's.
        groups: the model's layer groups.
        host_bytes: free host memory, for swap space.

    Raises:
        ConfigError: it does not fit; the message says what takes how much, and names the fields that help.
    """
    allowed = int(found.total_bytes * config.gpu_memory_utilization)
    free = allowed - found.taken_bytes - page_bytes
    if free < page_bytes * len(groups):
        raise ConfigError(
            f"gpu_memory_utilization={config.gpu_memory_utilization} allows {size_in_words(allowed)} of the GPU's "
            f"{size_in_words(found.total_bytes)}, and there is no room for one KV block: "
            f"{size_in_words(found.used_bytes)} is taken (of it {size_in_words(weights_bytes)} by the weights), the "
            f"largest step takes {size_in_words(found.step_bytes)} more and graphs {size_in_words(found.graph_bytes)}; "
            f"raise it, lower max_num_batched_tokens={config.max_num_batched_tokens} or "
            f"max_num_seqs={config.max_num_seqs}, or choose a smaller model or dtype"
        )
    num_host_blocks = host_blocks(config.swap_space, page_bytes)
    if num_host_blocks * page_bytes > host_bytes:
        raise ConfigError(
            f"swap_space={config.swap_space} GiB is more than the {size_in_words(host_bytes)} free on the host"
        )
    pool = fit_pool(
        Room(
            free,
            free,
            after=f"the weights, the largest step and graphs, within gpu_memory_utilization="
            f"{config.gpu_memory_utilization}",
            remedy="raise gpu_memory_utilization, or lower max_num_batched_tokens or max_num_seqs",
        ),
        page_bytes=page_bytes,
        model_max_len=model_max_len,
        config=config,
        groups=groups,
    )
    return MemoryPlan(
        available_bytes=allowed,
        weights_bytes=weights_bytes,
        page_bytes=page_bytes,
        block_size=config.block_size,
        groups=tuple(groups),
        stride=stride_of(config),
        num_blocks=pool.num_blocks,
        max_model_len=pool.max_model_len,
        num_host_blocks=num_host_blocks,
        working_bytes=found.taken_bytes - weights_bytes,
        notes=pool.notes,
    )


def estimated_profile(
    model: ModelConfig, dtype: torch.dtype, config: EngineConfig, memory: DeviceMemory, weights_bytes: int
) -> Profile:
    """What a profile would find, without loading anything: the weights, the buffers of the largest step and the logits
    of the largest batch, beside what is taken now. What kernels need for themselves, and graphs, is not counted."""
    rows = min(config.max_num_seqs, config.max_num_batched_tokens)
    width = 3 * model.hidden_size + 2 * model.q_size + 2 * model.kv_size + model.intermediate_size
    buffers = config.max_num_batched_tokens * width * dtype.itemsize
    logits = rows * model.vocab_size
    edited = logits * (torch.float32.itemsize + torch.int32.itemsize)  # biases and tallies, if all have them
    used = memory.used + weights_bytes + buffers + logits * dtype.itemsize
    return Profile(memory.total, used, edited + logits * torch.float32.itemsize, 0)


def fitting(accelerator: Accelerator, what: str, remedy: str, work: Callable[[], T]) -> T:
    """Do ``work``, whose failing for want of memory is a matter of configuration.

    Raises:
        ConfigError: memory ran out; the message says while doing ``what``, and names the ``remedy``.
    """
    try:
        return work()
    except Exception as error:
        if not accelerator.is_out_of_memory(error):
            raise
        raise too_small(accelerator, what, remedy, str(error)) from error


def too_small(accelerator: Accelerator, what: str, remedy: str, says: str) -> ConfigError:
    """The error for memory that did not suffice, with what the device ``says`` of it."""
    found = accelerator.description
    return ConfigError(
        f"{found.name} has {size_in_words(found.total_bytes)} of memory, which did not suffice to {what}: {remedy} "
        f"({says})"
    )


def _graph_budget(graphs: GraphLadder) -> int:
    """Of what capturing the largest and the smallest batch took. Graphs share the memory that they compute in, so the
    smallest one's is what each of them takes alone; captured in any order, of which the larger ones cannot use what the
    smaller ones have, they may need that of the largest once more."""
    sizes = graphs.sizes
    taken = [graphs.bytes_of.get(size, 0) for size in sizes]
    return 2 * max(taken) + (len(sizes) - 1) * min(taken[0], max(taken)) if taken else 0


def _longest(config: EngineConfig, context: int) -> int:
    """Tokens of the longest sequence of the largest step; one more must fit the context."""
    return max(1, min(config.max_num_batched_tokens, context - 1))


def _run(executor: Executor, plan: StepPlan) -> None:
    executor.collect(executor.submit(plan))


class _Steps:
    """Plans of the largest steps there can be. All sequences have the same blocks: what they hold does not matter."""

    def __init__(self, facts: ModelFacts, config: EngineConfig) -> None:
        most, size = config.max_num_batched_tokens, config.block_size
        longest = _longest(config, facts.max_model_len)
        self.num_seqs = min(config.max_num_seqs, most)
        rest = most - self.num_seqs  # one token each, and the others as few sequences as can have them
        self._lengths = []
        for _ in range(self.num_seqs):
            more = min(rest, longest - 1)
            self._lengths.append(1 + more)
            rest -= more
        width = -(-(longest + 1) // size)
        self._tables = tuple(tuple(range(g * width, (g + 1) * width)) for g in range(len(facts.groups)))
        self._vocab_size = facts.vocab_size

    def prefill(self, step: int) -> StepPlan:
        """All the tokens of a step, and a draw for every sequence that can be resident."""
        inits, chunks = [], []
        for slot, length in enumerate(self._lengths):
            tokens = tuple(i % self._vocab_size for i in range(length))
            inits.append(SlotInit(slot, slot, "", slot, 0, length, tokens, _EVERYTHING))
            kept = (0,) * len(self._tables)
            chunks.append(Chunk(slot, slot, 0, length, tokens, kept, self._tables, 0, Want.SAMPLE, (slot,)))
        return StepPlan(step, tuple(chunks), init=tuple(inits))

    def decode(self, step: int, rows: int) -> StepPlan:
        """One more token of ``rows`` sequences."""
        kept, nothing = tuple(map(len, self._tables)), ((),) * len(self._tables)
        chunks = [
            Chunk(slot, slot, length, 1, (0,), kept, nothing, length, Want.SAMPLE, (slot,))
            for slot, length in enumerate(self._lengths[:rows])
        ]
        return StepPlan(step, tuple(chunks))
