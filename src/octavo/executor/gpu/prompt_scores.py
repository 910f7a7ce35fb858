"""Log-probabilities of the prompts' own tokens, computed without the host's waiting for any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.gpu.columns import ChunkColumns
from octavo.executor.gpu.state import DeviceSlots
from octavo.executor.prompt_scores import LOGITS_BYTES
from octavo.plan import Sample, Want


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A part of a prompt whose tokens' log-probabilities are wanted."""

    index: int  #: the chunk's place in the plan
    rows: NDArray[np.int64]  #: of the flat batch, whose logits speak of the tokens
    tokens: NDArray[np.int64]  #: the prompt's token after each of the rows
    count: int  #: alternatives to report beside each

    def samples(self, fetched: list[list[Any]]) -> tuple[Sample, ...] | None:
        """Of what :func:`score` returned for it, on the host; None where the logits were not finite."""
        samples: list[Sample] = []
        parts = iter(fetched)
        for finite in parts:
            if not all(finite):
                return None
            logprobs = next(parts)
            tops: list[tuple[tuple[int, float], ...]] = [()] * len(logprobs)
            if self.count:
                ids, values = next(parts), next(parts)
                tops = [tuple(zip(*row, strict=True)) for row in zip(ids, values, strict=True)]
            done = len(samples)
            samples.extend(map(Sample, self.tokens[done : done + len(logprobs)].tolist(), logprobs, tops))
        return tuple(samples)


def scored_prompts(columns: ChunkColumns, state: DeviceSlots) -> list[ScoredPrompt]:
    """The chunks that want the log-probability of a token of their prompt."""
    found = []
    for index, chunk in enumerate(columns.chunks):
        prompt, count = state.prompt[chunk.slot], state.spec[chunk.slot].prompt_logprobs
        end = chunk.start + chunk.count
        # A chunk that draws wants its last position anyway; only an earlier one speaks of the prompt.
        if prompt is None or count is None or chunk.outputs_from >= end - (chunk.want is not Want.NONE):
            continue
        tokens = prompt[chunk.outputs_from + 1 : end + 1]
        if len(tokens):
            row = int(columns.query_start[index + 1]) - (end - chunk.outputs_from)
            found.append(ScoredPrompt(index, np.arange(row, row + len(tokens)), tokens, count))
    return found


def score(
    prompt: ScoredPrompt,
    tokens: torch.Tensor,
    hidden: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    kernels: ModuleType,
    vocab_size: int,
) -> list[torch.Tensor]:
    """Queue the work for one prompt, a bounded number of rows at a time.

    Args:
        prompt: what is wanted.
        tokens: its tokens, on the device.
        hidden: what the decoder's last norm gave for its rows, ``[len(tokens), hidden_size]``.
        head: rows of ``hidden`` to float32 logits.
        kernels: ``log_softmax_gather`` and ``top_logprobs`` are used.
        vocab_size: width of the logits.

    Returns:
        for each piece: whether each row is finite, bool; the tokens' log-probabilities; and where alternatives are
        wanted their ids and log-probabilities, ``[rows, count]``. What :meth:`ScoredPrompt.samples` takes.
    """
    size = max(1, LOGITS_BYTES // (4 * vocab_size))
    count = min(prompt.count, vocab_size)
    results: list[torch.Tensor] = []
    for start in range(0, len(tokens), size):
        piece = slice(start, start + size)
        logits = head(hidden[piece])
        results += [logits.isfinite().all(dim=1), kernels.log_softmax_gather(logits, tokens[piece])]
        if count:
            results += kernels.top_logprobs(logits, count)
    return results
