"""The contract between a scheduler and an executor: a :class:`StepPlan` goes in, a :class:`StepResult` comes back.

Both are plain data (ints, strings and tuples of them): a plan is the executor's input, the run log's row, and the
picture's frame, and two runs can be compared by comparing their plans.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

PENDING = -1
"""Stands in ``Chunk.tokens`` for a token that the plan still in flight will sample (``depth`` 1)."""

HOLE = -1
"""Stands in a block table for a block that was given back because all its tokens have left the layer group's window:
nobody may read or write there. Tables keep their alignment, so holes come first in them."""


class Want(IntEnum):
    """What a chunk's last positions are for."""

    NONE = 0  #: nothing is read back (a prefill chunk that is not the last)
    SAMPLE = 1  #: draw one token for each entry of ``Chunk.draws`` from the last position's logits
    LOGPROBS = 2  #: no draw: only the ``top`` likeliest tokens of the last position (beam search)


class Chunk(NamedTuple):
    """Some consecutive tokens of one sequence, to be computed in this step.

    The executor keeps one row (a *slot*) for each resident sequence, with the sequence's tokens and its block
    tables; a chunk carries only what changed. It first cuts each group's table to ``blocks_from[g]`` entries and
    appends ``blocks[g]``: growth, a replaced block after a copy-on-write, a resume, all are this one rule. Among
    ``blocks[g]`` may be HOLEs; entries that the executor was told earlier become holes without notice.
    """

    slot: int  #: the executor's row
    seq_id: int
    start: int  #: position of the first token of the chunk
    count: int  # type: ignore[assignment]  #: number of tokens (no one counts in a chunk)
    tokens: tuple[int, ...]  #: their ids, PENDING where the plan in flight will decide
    blocks_from: tuple[int, ...]  #: for each layer group, the table's length that is kept
    blocks: tuple[tuple[int, ...], ...]  #: for each layer group, the block ids that follow it
    outputs_from: int  #: first position whose logits are wanted; start + count where none is
    want: Want
    draws: tuple[int, ...]  #: noise indexes, one sample each (``want`` is SAMPLE); one prompt may feed n samples
    drafts: int = 0  #: so many of the tokens, the last ones, are guesses: see :class:`ChunkResult`


class SlotInit(NamedTuple):
    """A sequence takes a slot: on admission, on resuming after a preemption, and for each fork."""

    slot: int
    seq_id: int
    request_id: str
    index: int  # type: ignore[assignment]  #: the sequence's noise index: (seed, index) keys its random numbers
    seed: int  #: 64 bits
    num_prompt: int  #: how many of ``tokens`` are the prompt
    tokens: tuple[int, ...]  #: every token known so far (penalties and bad words look back at them)
    sampling: SamplingSpec
    salt: str | None = None  #: what beside the tokens decides which memory it may share


class BlockCopy(NamedTuple):
    """Copy the whole page ``source`` to ``target`` (copy-on-write); ``group`` says for which layer group."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """The numbers of a request's :class:`~octavo.request.SamplingParams` that an executor needs, all resolved."""

    temperature: float = 1.0  #: 0 is greedy
    top_k: int = 0  #: 0 keeps all
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()  #: token sequences that must not be completed
    min_tokens: int = 0  #: before so many new tokens, ``stop_ids`` are masked out
    stop_ids: tuple[int, ...] = ()  #: end-of-sequence ids and stop_token_ids
    logprobs: int | None = None  #: how many alternatives to report beside each drawn token; None reports nothing
    prompt_logprobs: int | None = None
    top: int = 0  #: how many of the likeliest tokens a LOGPROBS chunk returns

    @property
    def is_plain(self) -> bool:
        """Whether nothing but temperature stands between the logits and the draw."""
        return (
            self.top_k == 0
            and self.top_p >= 1.0
            and self.min_p == 0.0
            and self.repetition_penalty == 1.0
            and self.presence_penalty == 0.0
            and self.frequency_penalty == 0.0
            and not self.logit_bias
            and self.allowed_token_ids is None
            and not self.bad_words
            and self.min_tokens == 0
        )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does, in this order: release, swap_out, copies, swap_in, init, chunks."""

    step: int
    chunks: tuple[Chunk, ...]
    init: tuple[SlotInit, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    swap_out: tuple[tuple[int, int], ...] = ()  #: (device block, host block)
    swap_in: tuple[tuple[int, int], ...] = ()  #: (host block, device block)
    released: tuple[int, ...] = ()  #: slots whose sequence has gone since the last plan
    preempted: tuple[int, ...] = ()  #: sequence ids that lost their blocks in this step
    evicted: tuple[int, ...] = ()  #: cached blocks that were dropped to make room

    @property
    def num_tokens(self) -> int:
        """Tokens computed by this step."""
        return sum(chunk.count for chunk in self.chunks)


class Sample(NamedTuple):
    """One drawn token. ``logprob`` is under the model's raw distribution (before temperature and truncation)."""

    token: int
    logprob: float | None = None  #: given when the request asked for logprobs, best_of or beams
    top: tuple[tuple[int, float], ...] = ()  #: the likeliest (token, logprob), best first


class ChunkResult(NamedTuple):
    """What came of one chunk; stands at the chunk's place in ``StepResult.results``.

    Where the chunk has drafts, a token is drawn at each of its positions from ``outputs_from`` on, with that position's
    own noise: the samples are those up to the first that is not the draft which follows it, or the last. So they are
    what as many steps of one token would have drawn, for a draft that equals the token drawn is that token.
    (Leviathan, Kalman and Matias, "Fast inference from transformers via speculative decoding", ICML 2023; verified by
    comparison with noise given beforehand, no token's distribution enters into it.)
    """

    samples: tuple[Sample, ...] = ()  #: one for each entry of ``Chunk.draws``; with drafts, for each token that came
    top: tuple[tuple[int, float], ...] = ()  #: for want LOGPROBS: the likeliest (token, logprob), best first
    prompt: tuple[Sample, ...] = ()  #: prompt logprobs: the entry for position outputs_from + 1 comes first
    error: str | None = None  #: this sequence's logits were not finite: its request fails, alone


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an executor says of a plan."""

    step: int
    results: tuple[ChunkResult, ...]
    elapsed: float = 0.0  #: seconds, measured or modelled


class Handle(Protocol):
    """A step under way; what it is made of is the executor's business."""


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share one block table: all alike in how much of the past they keep."""

    num_layers: int
    window: int | None = None  #: tokens of the past a layer sees, itself included; None sees all

    def pairs(self, length: int) -> int:
        """How many positions the first ``length`` tokens of a sequence attend to in one layer, all together."""
        near = length if self.window is None else min(length, self.window)
        return near * (near + 1) // 2 + (length - near) * near

    def first_visible(self, position: int) -> int:
        """The first position that the token at ``position``, or any after it, sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)

    def blocks_for(self, num_tokens: int, block_size: int, stride: int) -> int:
        """The most blocks of this group that one sequence of so many tokens holds at once.

        A window bounds them whatever the length: what the oldest token of a step looks back on, the step itself, and
        one more for where in a block they begin. (The block before the one being filled is always kept: the sequence's
        place in the prefix tree hangs on it.)

        Args:
            num_tokens: the sequence's length.
            block_size: tokens a block holds.
            stride: tokens between the last committed one and the last planned one, at the most.
        """
        whole = -(-num_tokens // block_size)
        if self.window is None:
            return whole
        return min(whole, -(-(max(self.window, block_size) - 1 + stride) // block_size) + 1)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What an executor tells the engine about the model and the memory it has."""

    num_blocks: int
    max_model_len: int  #: tokens of context served (the model's, or what fits)
    vocab_size: int  #: width of the logits; a token id must be smaller
    eos_token_ids: tuple[int, ...] = ()
    groups: tuple[LayerGroup, ...] = (LayerGroup(1),)
    page_bytes: int = 0
    flops_per_token: float = 0.0  #: to put one token through the layers, attention left out
    attention_flops: float = 0.0  #: for one token to attend to one position in one layer
    link_bandwidth: float = 0.0  #: bytes a second between device and host memory, as measured; 0: it was not
    compute_speed: float = 0.0  #: FLOP a second of a prefill, as measured; 0: it was not
    step_costs: tuple[float, ...] = ()  #: what steps of 1, 2, 4, ... rows take, relative to the first; (): not measured
    depth: int = 0  #: plans in flight beside the one being built that suit the device
    notes: tuple[str, ...] = ()  #: one line each, for a person: what was chosen, and why


class Executor(Protocol):
    """Runs plans. ``submit`` must be called in plan order, ``collect`` once for each handle, in the same order."""

    @property
    def facts(self) -> ModelFacts:
        """What the scheduler must know of the model and the memory."""

    def submit(self, plan: StepPlan) -> Handle:
        """Begin a plan."""

    def collect(self, handle: Handle) -> StepResult:
        """Wait for a plan and take what came of it."""

    def close(self) -> None:
        """Give weights and memory back."""


@dataclass(frozen=True, slots=True)
class LogHeader:
    """The first line of a run log: everything ``schedule()`` reads, so that a run can be repeated from it."""

    version: int = 1
    config: dict[str, object] = field(default_factory=dict)
