"""Guesses what comes next in one text from what came next where its last tokens stood before."""

from __future__ import annotations

from octavo.scheduler.drafting.acceptance import LONGEST, Acceptance
from octavo.scheduler.drafting.ngram_index import NgramIndex, continuation, match_length


class NgramDrafter:
    """One sequence's guesses, and what became of them. A guess is judged by the tokens that really came, whether it was
    put to the model or not, so nothing has to be tried in order to learn that it would be worth trying again.

    Args:
        shortest, longest: the lengths of the n-grams to look for.
        pool: how guesses about all sequences fare.
    """

    __slots__ = ("_acceptance", "_guess", "_index", "_length", "_place")

    def __init__(self, shortest: int, longest: int, pool: Acceptance) -> None:
        self._index = NgramIndex(shortest, longest)
        self._acceptance = Acceptance(pool)
        self._guess: list[int] = []
        self._length = 0  # of the match that it came of
        self._place = 0  # the position of its first token

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """``count`` tokens that may follow ``tokens``, or none; ``tokens`` begin with those of the call before."""
        self._judge(tokens)
        match = self._index.find(tokens)
        if match is None:
            self._guess = []
        else:
            self._guess = continuation(tokens, match.place, count)
            self._length, self._place = match_length(tokens, match, LONGEST), len(tokens)
        return self._guess

    def chances(self, count: int) -> list[float]:
        """For each of the first ``count`` tokens of the latest guess, the chance that it comes true together with those
        before it."""
        chances, chance, length = [], 1.0, self._length
        for _ in range(count):
            chance *= self._acceptance.chance(length)
            chances.append(chance)
            length += 1
        return chances

    def _judge(self, tokens: list[int]) -> None:
        length = self._length
        for guessed, token in zip(self._guess, tokens[self._place :], strict=False):
            self._acceptance.note(length, guessed == token)
            if guessed != token:
                return
            length += 1
