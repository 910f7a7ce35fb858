"""What a sequence has said so far, kept in the form that penalties and bad words look back at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.errors import EngineError


class History:
    """A sequence's tokens, and each distinct one with the number of times it was generated.

    Built once from the tokens known when the slot is taken, then advanced by the few tokens of each chunk, so that
    a step costs as much as it adds.
    """

    __slots__ = ("_counts", "_ids", "_known", "_num_distinct", "_place", "_tallied", "_tokens", "num_prompt")

    def __init__(self, tokens: tuple[int, ...], num_prompt: int) -> None:
        self.num_prompt = num_prompt
        self._tokens = np.empty(len(tokens) + 64, np.int64)
        self._tokens[: len(tokens)] = tokens
        self._known = len(tokens)
        self._tallied = 0  # positions below it are counted in the following
        self._num_distinct = 0
        self._place: dict[int, int] = {}  # token -> where in _ids and _counts
        self._ids = np.empty(64, np.int64)
        self._counts = np.empty(64, np.float32)

    def write(self, start: int, tokens: NDArray[np.int64]) -> None:
        """The tokens at positions ``start`` and following are these from now on.

        Raises:
            EngineError: some token before ``start`` was never told.
        """
        if start > self._known:
            raise EngineError(f"a chunk starts at position {start}, but only {self._known} tokens are known")
        end = start + len(tokens)
        self._known = max(self._known, end)
        if end > len(self._tokens):
            grown = np.empty(2 * end, np.int64)
            grown[:start] = self._tokens[:start]
            self._tokens = grown
        if start < self._tallied and not np.array_equal(
            self._tokens[start : min(end, self._tallied)], tokens[: self._tallied - start]
        ):
            self._reset()
        self._tokens[start:end] = tokens

    def until(self, end: int) -> NDArray[np.int64]:
        """The tokens at positions below ``end``, int64."""
        return self._tokens[:end]

    def tally(self, end: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The distinct tokens at positions below ``end``, int64, and how often each occurs among those that are not
        of the prompt, float32. The arrays are views, good until the next call."""
        if end < self._tallied:
            self._reset()
        if end - self._tallied > 32:
            self._tally_many(end)
        else:
            for position in range(self._tallied, end):
                self._tally_one(int(self._tokens[position]), position >= self.num_prompt)
        self._tallied = end
        return self._ids[: self._num_distinct], self._counts[: self._num_distinct]

    def _reset(self) -> None:
        self._tallied = 0
        self._num_distinct = 0
        self._place.clear()

    def _tally_one(self, token: int, generated: bool) -> None:
        place = self._place.get(token)
        if place is None:
            place = self._num_distinct
            self._reserve(place + 1)
            self._place[token] = place
            self._ids[place] = token
            self._counts[place] = 0.0
            self._num_distinct += 1
        if generated:
            self._counts[place] += 1.0

    def _tally_many(self, end: int) -> None:
        added = self._tokens[self._tallied : end]
        generated = np.arange(self._tallied, end) >= self.num_prompt
        ids, inverse = np.unique(added, return_inverse=True)
        counts = np.bincount(inverse, weights=generated, minlength=len(ids))
        self._reserve(self._num_distinct + len(ids))
        for token, count in zip(ids.tolist(), counts.tolist(), strict=True):
            place = self._place.setdefault(token, self._num_distinct)
            if place == self._num_distinct:
                self._ids[place] = token
                self._counts[place] = 0.0
                self._num_distinct += 1
            self._counts[place] += count

    def _reserve(self, size: int) -> None:
        if size > len(self._ids):
            self._ids = np.concatenate((self._ids, np.empty(size, np.int64)))
            self._counts = np.concatenate((self._counts, np.empty(size, np.float32)))
