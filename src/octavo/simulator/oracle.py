"""An executor that proves, step by step, that every sequence reads exactly its own memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from octavo.plan import (
    HOLE,
    PENDING,
    Chunk,
    ChunkResult,
    LayerGroup,
    ModelFacts,
    Sample,
    SlotInit,
    StepPlan,
    StepResult,
    Want,
)

_MASK = (1 << 64) - 1


class OracleError(AssertionError):
    """A plan would have made a sequence read, write or copy memory that is not what it must be."""


def mix(digest: int, value: int) -> int:
    """One link of a chained 64-bit digest (the finalizer of splitmix64 over both)."""
    z = (digest * 0x9E3779B97F4A7C15 + value + 0x632BE59BD9B4E019) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def root(salt: str | None) -> int:
    """The digest before the first token: the namespace's."""
    return mix(0, 0 if salt is None else 1 + int.from_bytes(salt.encode(), "little"))


def chain(salt: str | None, tokens: Iterable[int]) -> list[int]:
    """The digest that each position's KV slot must hold: that of the whole prefix up to and with it."""
    digest = root(salt)
    digests = []
    for token in tokens:
        digest = mix(digest, token)
        digests.append(digest)
    return digests


def draw(digest: int, index: int, vocab_size: int) -> int:
    """The token that the make-believe model samples after a prefix: a function of prefix and noise index alone, so
    that what a request must generate is known however it was scheduled."""
    return mix(digest, 1_000_003 + index) % vocab_size


def likeliest(digest: int, count: int, vocab_size: int) -> tuple[tuple[int, float], ...]:
    """The make-believe model's best tokens after a prefix, with log-probabilities, best first."""
    order = sorted(range(vocab_size), key=lambda token: mix(digest, 2_000_003 + token))[:count]
    return tuple((token, -0.25 - 0.5 * place - (mix(digest, token) % 97) / 1000) for place, token in enumerate(order))


@dataclass(slots=True)
class _Slot:
    init: SlotInit
    digests: list[int]  # of every token known to the slot, and in a step of the drafts after them
    tables: list[list[int]]


class OracleExecutor:
    """Stores, for every KV slot of every block, the digest of the exact token prefix that it holds, and checks it on
    every read; a plan that shares wrongly, writes what is shared, publishes early, copies or swaps to the wrong place
    is caught in the step where it does so. Of a layer group with a window it checks what the chunk's tokens see: what
    lies before may have been given back. Its samples are :func:`draw`'s. Drafts are written like any token, and then
    verified; what a wrong one leaves behind in memory is not what anybody may read.

    Args:
        num_blocks: device blocks. block_size: tokens a block. groups: layer groups.
        vocab_size: small, so that prompts and outputs coincide often.
        failing: request ids whose first sample is reported as not finite.
        token_of: what to sample instead, given the sequence and the noise index.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_host_blocks: int = 0,
        groups: tuple[LayerGroup, ...] = (LayerGroup(1),),
        vocab_size: int = 4,
        max_model_len: int = 1 << 20,
        failing: frozenset[str] = frozenset(),
        token_of: Callable[[SlotInit, int], int] | None = None,
    ) -> None:
        self._token_of = token_of
        self.block_size = block_size
        self.groups = groups
        self.vocab_size = vocab_size
        self.failing = failing
        self.memory: NDArray[np.uint64] = np.zeros((num_blocks, block_size), np.uint64)
        self.host: NDArray[np.uint64] = np.zeros((num_host_blocks, block_size), np.uint64)
        self.slots: dict[int, _Slot] = {}
        self._last_step = -1
        self._facts = ModelFacts(
            num_blocks=num_blocks, max_model_len=max_model_len, vocab_size=vocab_size, groups=groups
        )

    @property
    def facts(self) -> ModelFacts:
        """What an engine asks of its executor."""
        return self._facts

    def submit(self, plan: StepPlan) -> StepResult:
        """Run the plan at once; the handle is its result.

        Raises:
            OracleError: the plan is wrong; the message says where.
        """
        if plan.step <= self._last_step:
            raise OracleError(f"step {plan.step} comes after step {self._last_step}")
        self._last_step = plan.step
        for slot in plan.released:
            if self.slots.pop(slot, None) is None:
                raise OracleError(f"slot {slot} is released, but nobody holds it")
        for block, host in plan.swap_out:
            self.host[host] = self.memory[block]
        for copy in plan.copies:
            self.memory[copy.target] = self.memory[copy.source]
        for host, block in plan.swap_in:
            self.memory[block] = self.host[host]
        for init in plan.init:
            if init.slot in self.slots:
                raise OracleError(f"slot {init.slot} is given to sequence {init.seq_id} while it is held")
            tables: list[list[int]] = [[] for _ in self.groups]
            self.slots[init.slot] = _Slot(init, chain(init.salt, init.tokens), tables)
        seen: set[int] = set()
        for chunk in plan.chunks:
            if chunk.slot in seen:
                raise OracleError(f"slot {chunk.slot} computes twice in step {plan.step}")
            seen.add(chunk.slot)
            self._write(chunk)
        # Reads come after all writes, as a layer's attention comes after its KV write.
        return StepResult(plan.step, tuple(self._read(chunk) for chunk in plan.chunks))

    def collect(self, handle: StepResult) -> StepResult:
        """The result of a submitted plan."""
        return handle

    def close(self) -> None:
        """Nothing to release."""

    def _write(self, chunk: Chunk) -> None:
        slot = self.slots.get(chunk.slot)
        if slot is None or slot.init.seq_id != chunk.seq_id:
            raise OracleError(f"sequence {chunk.seq_id} computes in slot {chunk.slot}, which is not its own")
        end = chunk.start + chunk.count
        if len(chunk.tokens) != chunk.count or chunk.count < 1:
            raise OracleError(f"sequence {chunk.seq_id}: {len(chunk.tokens)} tokens for {chunk.count} positions")
        drafted = end - chunk.drafts
        if chunk.drafts and (chunk.outputs_from != drafted - 1 or chunk.want is not Want.SAMPLE):
            raise OracleError(f"sequence {chunk.seq_id}: nothing is drawn where drafts are to be verified")
        for position, token in enumerate(chunk.tokens, chunk.start):
            if position >= drafted and position < len(slot.digests):
                raise OracleError(f"sequence {chunk.seq_id}: the token at {position} is known, but drafted")
            if token == PENDING:
                if position >= len(slot.digests):
                    raise OracleError(f"sequence {chunk.seq_id}: the token at {position} was never sampled")
                continue
            digest = mix(slot.digests[position - 1] if position else root(slot.init.salt), token)
            if position < len(slot.digests) and slot.digests[position] != digest:
                raise OracleError(f"sequence {chunk.seq_id}: the token at {position} is not the one known")
            if position == len(slot.digests):
                slot.digests.append(digest)
        for table, kept, added in zip(slot.tables, chunk.blocks_from, chunk.blocks, strict=True):
            if kept > len(table):
                raise OracleError(f"sequence {chunk.seq_id}: a table of {len(table)} blocks is cut to {kept}")
            table[kept:] = added
            if len(table) * self.block_size < end:
                raise OracleError(f"sequence {chunk.seq_id}: no block for position {end - 1}")
            for position in range(chunk.start, end):
                block = table[position // self.block_size]
                if block == HOLE:
                    raise OracleError(f"sequence {chunk.seq_id}: position {position} would be written to a hole")
                self.memory[block, position % self.block_size] = slot.digests[position]

    def _read(self, chunk: Chunk) -> ChunkResult:
        slot = self.slots[chunk.slot]
        end = chunk.start + chunk.count
        for number, (group, table) in enumerate(zip(self.groups, slot.tables, strict=True)):
            low = group.first_visible(chunk.start)  # of the chunk's tokens the first looks back furthest
            first = low // self.block_size
            blocks = table[first : -(-end // self.block_size)]
            expected = np.array(slot.digests[low:end], np.uint64)
            held = self.memory[blocks].reshape(-1)[low - first * self.block_size :][: end - low]
            if HOLE in blocks or not np.array_equal(held, expected):
                holes = [first + i for i, block in enumerate(blocks) if block == HOLE]
                wrong = holes[0] * self.block_size if holes else low + int(np.flatnonzero(held != expected)[0])
                raise OracleError(
                    f"sequence {chunk.seq_id} (request {slot.init.request_id}), group {number}: "
                    f"{'a hole' if holes else f'block {table[wrong // self.block_size]}'} "
                    f"does not hold position {wrong} of {end}"
                )
        last = slot.digests[end - 1]
        if slot.init.request_id in self.failing and chunk.want is not Want.NONE:
            if end == len(slot.digests):  # a plan in flight may go on from some token or other
                slot.digests.append(mix(last, 0))
            return ChunkResult(error="the logits are not finite")
        spec = slot.init.sampling
        if chunk.want is Want.LOGPROBS:
            return ChunkResult(top=likeliest(last, spec.top, self.vocab_size), prompt=self._prompt(chunk, slot))
        if chunk.drafts:
            return ChunkResult(samples=self._verify(chunk, slot))
        samples = tuple(
            Sample(self._draw(slot, last, index), None if spec.logprobs is None else -float(index) - 0.5)
            for index in chunk.draws
        )
        if len(samples) == 1 and end == len(slot.digests):
            slot.digests.append(mix(last, samples[0].token))
        return ChunkResult(samples=samples, prompt=self._prompt(chunk, slot))

    def _verify(self, chunk: Chunk, slot: _Slot) -> tuple[Sample, ...]:
        """Draw at each position from the last known token's on, until a draft is not what was drawn; the slot keeps the
        tokens drawn, and no draft beside them."""
        known = chunk.start + chunk.count - chunk.drafts
        drafts = slot.digests[known:]
        del slot.digests[known:]
        samples: list[Sample] = []
        (index,) = chunk.draws
        for digest in (*drafts, None):
            token = self._draw(slot, slot.digests[-1], index)
            samples.append(Sample(token, None if slot.init.sampling.logprobs is None else -float(index) - 0.5))
            slot.digests.append(mix(slot.digests[-1], token))
            if slot.digests[-1] != digest:
                break
        return tuple(samples)

    def _draw(self, slot: _Slot, digest: int, index: int) -> int:
        return draw(digest, index, self.vocab_size) if self._token_of is None else self._token_of(slot.init, index)

    def _prompt(self, chunk: Chunk, slot: _Slot) -> tuple[Sample, ...]:
        if slot.init.sampling.prompt_logprobs is None:
            return ()
        last = min(chunk.start + chunk.count, slot.init.num_prompt - 1)
        return tuple(Sample(slot.init.tokens[p + 1], -1.0 - p) for p in range(chunk.outputs_from, last))
