"""Log-probabilities of the prompt's own tokens (``prompt_logprobs``).

Every position of the prompt needs a row of logits; they are made and used up a bounded number of rows at a time, so
that a prompt of 4,096 tokens over a vocabulary of 150,000 does not take 2.4 GB.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.batch import Batch
from octavo.executor.sampler import top_logprobs
from octavo.executor.slots import SlotTable
from octavo.plan import Sample, Want

LOGITS_BYTES = 64 * 2**20
"""The most memory that a piece of the prompt's logits takes."""


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """A part of a prompt whose tokens' log-probabilities are wanted."""

    index: int  #: the chunk's place in the plan
    row: int  #: of the flat batch, the first whose output is wanted
    tokens: NDArray[np.int64]  #: the prompt's token after each row wanted
    count: int  #: alternatives to report beside each


def scored_chunks(batch: Batch, state: SlotTable) -> list[ScoredChunk]:
    """The chunks that want the log-probability of a token of their prompt."""
    # A chunk that draws wants its last position anyway; only an earlier one speaks of the prompt.
    early = np.flatnonzero(batch.outputs_from < batch.ends - (batch.wants != Want.NONE))
    found = []
    for index in early.tolist():
        slot = batch.slots[index]
        prompt, count = state.prompt[slot], state.spec[slot].prompt_logprobs
        if prompt is None or count is None:
            continue
        first, end = int(batch.outputs_from[index]), int(batch.ends[index])
        tokens = prompt[first + 1 : end + 1]
        if len(tokens):
            found.append(ScoredChunk(index, int(batch.query_start[index + 1]) - (end - first), tokens, count))
    return found


def score_prompt(
    chunk: ScoredChunk, hidden: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor], kernels: ModuleType
) -> tuple[Sample, ...] | None:
    """One sample for each of the chunk's tokens, or None if the model's logits are not finite.

    Args:
        chunk: what is wanted.
        hidden: what the decoder's last norm gave for the rows wanted, [len(chunk.tokens), hidden_size].
        head: rows of ``hidden`` to float32 logits.
        kernels: ``greedy``, ``log_softmax_gather`` and ``top_logprobs`` are used.
    """
    samples: list[Sample] = []
    start, size = 0, 1  # the first row tells how wide the logits are
    while start < len(chunk.tokens):
        tokens = chunk.tokens[start : start + size]
        logits = head(hidden[start : start + size])
        if int(kernels.greedy(logits).min()) < 0:
            return None
        logprobs = kernels.log_softmax_gather(logits, torch.from_numpy(tokens)).tolist()
        alternatives = top_logprobs(kernels, logits, [chunk.count] * len(tokens))
        samples.extend(map(Sample, tokens.tolist(), logprobs, alternatives))
        start += len(tokens)
        size = max(1, LOGITS_BYTES // logits[0].nbytes)
    return tuple(samples)
