"""Masks, biases and penalties: everything that changes logits before a token is drawn.

In this order, which is vLLM's: ``allowed_token_ids``, ``logit_bias``, ``bad_words``, ``min_tokens`` (as Hugging Face's
processors, they only add, or set minus infinity), then the repetition penalty (Keskar et al., CTRL, 2019: over prompt
and output), then the frequency and presence penalties (OpenAI's definitions: over the output alone).

What one sequence wants is kept in a :class:`LogitEdits`; the edits of all rows of a batch are gathered as flat indexes
into the logits and applied by a handful of tensor operations (:class:`BatchEdits`), so that nothing here loops over the
vocabulary, and a row costs what it touches.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.executor.history import History
from octavo.plan import SamplingSpec, SlotInit


class LogitEdits:
    """What one sequence's sampling parameters do to its logits. Token ids outside the vocabulary are dropped: they
    can be neither drawn nor masked."""

    __slots__ = (
        "allowed",
        "bias",
        "history",
        "longest",
        "masks",
        "min_tokens",
        "penalties",
        "phrases",
        "stop_ids",
        "words",
    )

    def __init__(self, init: SlotInit, vocab_size: int) -> None:
        spec = init.sampling
        self.history = History(init.tokens, init.num_prompt)
        self.allowed = None if spec.allowed_token_ids is None else _known(spec.allowed_token_ids, vocab_size)
        bias = [(token, value) for token, value in spec.logit_bias if 0 <= token < vocab_size]
        self.bias = (
            np.array([token for token, _ in bias], np.int64),
            np.array([value for _, value in bias], np.float32),
        )
        words = [word for word in spec.bad_words if word and 0 <= word[-1] < vocab_size]
        self.words = _known(tuple(word[0] for word in words if len(word) == 1), vocab_size)
        self.phrases = [(word[:-1], word[-1]) for word in words if len(word) > 1]
        self.longest = max((len(prefix) for prefix, _ in self.phrases), default=0)
        self.min_tokens = spec.min_tokens
        self.stop_ids = _known(spec.stop_ids, vocab_size)
        penalties = (spec.repetition_penalty, spec.presence_penalty, spec.frequency_penalty)
        self.penalties = None if penalties == (1.0, 0.0, 0.0) else penalties
        self.masks = bool(self.allowed is not None or words or (spec.min_tokens > 0 and len(self.stop_ids)))

    @classmethod
    def of(cls, init: SlotInit, vocab_size: int) -> LogitEdits | None:
        """The edits of a sequence, or None where its parameters ask for none."""
        return cls(init, vocab_size) if _edits(init.sampling) else None

    def masked(self, end: int) -> list[NDArray[np.int64]]:
        """Tokens that may not come at position ``end``: bad words, and the stop ids before ``min_tokens``."""
        found = [self.words] if len(self.words) else []
        if self.phrases:
            past = self.history.until(end)[max(0, end - self.longest) :].tolist()
            last = [token for prefix, token in self.phrases if tuple(past[-len(prefix) :]) == prefix]
            if last:
                found.append(np.array(last, np.int64))
        if end - self.history.num_prompt < self.min_tokens and len(self.stop_ids):
            found.append(self.stop_ids)
        return found


class BatchEdits:
    """The edits of several rows, gathered by :meth:`add` and then applied at once.

    Args:
        vocab_size: width of the logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._allowed_rows: list[int] = []
        self._allowed: list[NDArray[np.int64]] = []
        self._biased: list[NDArray[np.int64]] = []
        self._bias: list[NDArray[np.float32]] = []
        self._masked: list[NDArray[np.int64]] = []
        self._seen: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.float32]] = []
        self._penalties: list[tuple[int, float, float, float]] = []  # (offset, repetition, presence, frequency)
        self._latest: LogitEdits | None = None  # whose penalties were added last
        self.masked_rows: list[int] = []  #: rows that lost tokens, and might have lost all of them

    def add(self, row: int, edits: LogitEdits, end: int) -> None:
        """Row ``row`` holds the logits of the token at position ``end`` of the sequence that ``edits`` belongs to. The
        rows of one sequence come one after the other."""
        offset = row * self._vocab_size
        if edits.masks:
            self.masked_rows.append(row)
            if edits.allowed is not None:
                self._allowed_rows.append(row)
                self._allowed.append(edits.allowed + offset)
            self._masked.extend(ids + offset for ids in edits.masked(end))
        if len(edits.bias[0]):
            self._biased.append(edits.bias[0] + offset)
            self._bias.append(edits.bias[1])
        if edits.penalties is not None:
            if self._latest is edits:  # another row of the same sequence: what is at hand are views of its history
                self._seen[-1], self._counts[-1] = self._seen[-1].copy(), self._counts[-1].copy()
            self._latest = edits
            ids, counts = edits.history.tally(end)
            self._seen.append(ids)
            self._counts.append(counts)
            self._penalties.append((offset, *edits.penalties))

    def apply(self, logits: torch.Tensor) -> None:
        """Change ``logits`` (float32 [rows, vocab_size], contiguous) in place."""
        flat = logits.view(-1)
        if self._allowed:
            index = _tensor(self._allowed, flat)
            kept = flat.index_select(0, index)
            logits.index_fill_(0, torch.tensor(self._allowed_rows, device=flat.device), -torch.inf)
            flat.index_copy_(0, index, kept)
        if self._biased:
            flat.index_add_(0, _tensor(self._biased, flat), _tensor(self._bias, flat))
        if self._masked:
            flat.index_fill_(0, _tensor(self._masked, flat), -torch.inf)
        if self._seen:
            self._penalise(flat)

    def _penalise(self, flat: torch.Tensor) -> None:
        lengths = [len(ids) for ids in self._seen]
        offsets, repetition, presence, frequency = zip(*self._penalties, strict=True)
        index = torch.from_numpy(np.concatenate(self._seen) + np.repeat(offsets, lengths)).to(flat.device)
        factor = torch.from_numpy(np.repeat(np.array(repetition, np.float32), lengths)).to(flat.device)
        values = flat.index_select(0, index)
        values = values.clamp(min=0) / factor + values.clamp(max=0) * factor  # one of the two is 0
        if any(presence) or any(frequency):
            counts = np.concatenate(self._counts)
            subtract = np.repeat(np.array(frequency, np.float32), lengths) * counts
            subtract += np.repeat(np.array(presence, np.float32), lengths) * (counts > 0)
            values -= torch.from_numpy(subtract).to(flat.device)
        flat.index_copy_(0, index, values)


def _tensor(parts: list[NDArray[np.int64]] | list[NDArray[np.float32]], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(like.device)


def _known(ids: tuple[int, ...], vocab_size: int) -> NDArray[np.int64]:
    return np.array([token for token in dict.fromkeys(ids) if 0 <= token < vocab_size], np.int64)


def _edits(spec: SamplingSpec) -> bool:
    return (
        spec.allowed_token_ids is not None
        or bool(spec.logit_bias)
        or bool(spec.bad_words)
        or (spec.min_tokens > 0 and bool(spec.stop_ids))
        or spec.repetition_penalty != 1.0
        or spec.presence_penalty != 0.0
        or spec.frequency_penalty != 0.0
    )
