"""From logits to tokens: what a step's wanted rows give.

The order of operations for a row that draws:

1. a row that is not finite fails its own sequence, nobody else's;
2. log-probabilities to be reported are those of the model's own logits, before anything changes them;
3. masks, biases and penalties (``edits.py``); a row left without any token fails its own sequence;
4. ``kernels.sample``: temperature, top-k, top-p, min-p, then Gumbel noise keyed by (seed, noise index) and counted by
   (position of the sampled token, token id), or the arg-max at temperature 0.

A row for beam search (``Want.LOGPROBS``) draws nothing. As in Hugging Face's beam search, log-softmax comes first, the
edits then change the log-probabilities, and these are not normalised again; ``SamplingSpec.top`` of them are returned.
"""

from __future__ import annotations

from itertools import chain
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.edits import BatchEdits
from octavo.executor.slots import SlotTable
from octavo.plan import ChunkResult, Sample, Want

NOT_FINITE = "the model's logits for this sequence are not finite (NaN or infinity)"
NO_TOKEN_LEFT = (
    "no token is left to draw: allowed_token_ids, bad_words and min_tokens together exclude the whole vocabulary"
)

Top = tuple[tuple[int, float], ...]


class Sampler:
    """Draws for a batch of rows.

    Args:
        kernels: a backend of :mod:`octavo.kernels`; ``greedy``, ``sample``, ``log_softmax_gather`` and
            ``top_logprobs`` are used.
        slots: each sequence's parameters.
    """

    def __init__(self, kernels: ModuleType, slots: SlotTable) -> None:
        self._kernels = kernels
        self._slots = slots

    def run(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        wants: NDArray[np.uint8],
        draws: tuple[tuple[int, ...], ...],
    ) -> list[ChunkResult]:
        """One result for each row.

        Args:
            logits: float32 [rows, vocab_size], contiguous; may be changed in place.
            slots: each row's slot.
            positions: the position of the token that each row's logits are for.
            wants: each row's Want, SAMPLE or LOGPROBS.
            draws: the noise indexes to draw with, one sample each; none for LOGPROBS.
        """
        state = self._slots
        likeliest = self._kernels.greedy(logits).tolist()
        failed = {row: NOT_FINITE for row, token in enumerate(likeliest) if token < 0}
        num_draws = [*map(len, draws)]
        once = num_draws.count(1) == len(num_draws)
        if once and not failed and not state.special[slots].any():
            tokens = self._draw(logits, slots, positions, draws) if state.temperature[slots].any() else likeliest
            state.last_token[slots] = tokens
            return [ChunkResult((Sample(token),)) for token in tokens]

        edited = state.edited[slots]
        any_edited = bool(edited.any())
        searching = np.flatnonzero(wants == Want.LOGPROBS)
        wanted = np.where(wants == Want.SAMPLE, state.logprobs[slots], -1)
        reports = None
        if (wanted >= 0).any():
            reports = Reports(self._kernels, logits, wanted, changed=any_edited or len(searching) > 0 or bool(failed))
        if len(searching):
            logits[searching] = torch.log_softmax(logits[searching], dim=1)
        if any_edited:
            failed |= self._edit(logits, slots, positions, np.flatnonzero(edited), failed)
        if failed:
            # Whatever is drawn from these rows is thrown away; zeros keep the kernel's arithmetic ordinary.
            logits[list(failed)] = 0.0

        if once:
            tokens = self._draw(logits, slots, positions, draws)
        else:
            repeat = np.repeat(np.arange(len(slots)), num_draws)
            drawn_from = logits[torch.from_numpy(repeat)]
            tokens = self._draw(drawn_from, slots[repeat], positions[repeat], draws)
        return self._results(logits, slots, wants, draws, tokens, reports, failed)

    def _edit(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        failed: dict[int, str],
    ) -> dict[int, str]:
        """Change the logits of ``rows``; returns those that no token is left in."""
        batch = BatchEdits(self._slots.vocab_size)
        for row in rows.tolist():
            edits = self._slots.edits[slots[row]]
            if edits is not None and row not in failed:
                batch.add(row, edits, int(positions[row]))
        batch.apply(logits)
        if not batch.masked_rows:
            return {}
        emptied = torch.isneginf(logits[batch.masked_rows].amax(dim=1)).tolist()
        return {row: NO_TOKEN_LEFT for row, none in zip(batch.masked_rows, emptied, strict=True) if none}

    def _draw(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        draws: tuple[tuple[int, ...], ...],
    ) -> list[int]:
        if not len(slots):
            return []
        state = self._slots
        indexes = np.fromiter(chain.from_iterable(draws), np.int64, count=len(slots))
        tokens: list[int] = self._kernels.sample(
            logits,
            torch.from_numpy(state.temperature[slots]),
            torch.from_numpy(state.top_k[slots]),
            torch.from_numpy(state.top_p[slots]),
            torch.from_numpy(state.min_p[slots]),
            torch.from_numpy(state.seed[slots]),
            torch.from_numpy(indexes),
            torch.from_numpy(positions),
        ).tolist()
        return tokens

    def _results(
        self,
        logits: torch.Tensor,
        slots: NDArray[np.int64],
        wants: NDArray[np.uint8],
        draws: tuple[tuple[int, ...], ...],
        tokens: list[int],
        reports: Reports | None,
        failed: dict[int, str],
    ) -> list[ChunkResult]:
        found = iter(tokens)
        drawn = [[next(found) for _ in indexes] for indexes in draws]
        reported = {} if reports is None else reports.samples(drawn)
        results = []
        for row, (slot, indexes) in enumerate(zip(slots.tolist(), draws, strict=True)):
            if row in failed:
                results.append(ChunkResult(error=failed[row]))
            elif wants[row] == Want.LOGPROBS:
                results.append(ChunkResult(top=_likeliest(logits[row], self._slots.spec[slot].top)))
            else:
                if indexes:
                    own = int(self._slots.index[slot])
                    self._slots.last_token[slot] = drawn[row][indexes.index(own) if own in indexes else 0]
                samples = reported.get(row)
                results.append(ChunkResult(samples or tuple(Sample(token) for token in drawn[row])))
        return results


class Reports:
    """Log-probabilities under the model's own distribution, for the rows that asked.

    Args:
        kernels: ``log_softmax_gather`` and ``top_logprobs`` are used.
        logits: float32 [rows, vocab_size], as the model gave them.
        wanted: for each row, how many alternatives beside the drawn token; -1 asks for nothing.
        changed: whether somebody will change ``logits`` before :meth:`samples` (then what is needed is copied).
    """

    def __init__(self, kernels: ModuleType, logits: torch.Tensor, wanted: NDArray[np.int64], changed: bool) -> None:
        self._kernels = kernels
        self._rows = np.flatnonzero(wanted >= 0).tolist()
        everything = len(self._rows) == len(wanted)
        self._raw = (logits.clone() if changed else logits) if everything else logits[self._rows]
        self._tops = top_logprobs(kernels, self._raw, wanted[self._rows].tolist())

    def samples(self, drawn: list[list[int]]) -> dict[int, tuple[Sample, ...]]:
        """For each row that asked, its samples; ``drawn`` are the tokens drawn from each row of the batch."""
        place = [at for at, row in enumerate(self._rows) for _ in drawn[row]]
        tokens = [token for row in self._rows for token in drawn[row]]
        raw = self._raw if place == [*range(len(self._raw))] else self._raw[place]
        logprobs = iter(self._kernels.log_softmax_gather(raw, torch.tensor(tokens)).tolist() if tokens else [])
        return {
            row: tuple(Sample(token, next(logprobs), top) for token in drawn[row])
            for row, top in zip(self._rows, self._tops, strict=True)
        }


def top_logprobs(kernels: ModuleType, logits: torch.Tensor, counts: list[int]) -> list[Top]:
    """For each row of logits (float32 [rows, vocab_size]), its ``counts[row]`` likeliest tokens with their
    log-probabilities, best first; where ``counts`` exceeds the vocabulary, the whole vocabulary."""
    most = min(max(counts, default=0), logits.shape[1])
    if most == 0:
        return [()] * len(counts)
    ids, values = kernels.top_logprobs(logits, most)
    return [
        tuple(zip(row_ids[:count], row_values[:count], strict=True))
        for row_ids, row_values, count in zip(ids.tolist(), values.tolist(), counts, strict=True)
    ]


def _likeliest(scores: torch.Tensor, count: int) -> Top:
    values, ids = scores.topk(min(count, scores.shape[0]))
    pairs = zip(ids.tolist(), values.tolist(), strict=True)
    return tuple(pair for pair in pairs if pair[1] != -torch.inf)
