"""Guesses what comes next in one text from what came next where its last tokens stood before."""

from __future__ import annotations

from octavo.scheduler.drafting.acceptance import Acceptance
from octavo.scheduler.drafting.ngram_index import NgramIndex, continuation


class NgramDrafter:
    """One sequence's guesses, and what became of them. A guess is judged by the tokens that really came, whether it was
    put to the model or not, so nothing has to be tried in order to learn that it would be worth trying again.

    Args:
        shortest, longest: the lengths of the n-grams to look for.
    """

    __slots__ = ("_guess", "_index", "_length", "_place", "acceptance")

    def __init__(self, shortest: int, longest: int) -> None:
        self._index = NgramIndex(shortest, longest)
        self.acceptance = Acceptance()
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
            self._length, self._place = match.length, len(tokens)
        return self._guess

    @property
    def chance(self) -> float:
        """That the first token of the latest guess comes true."""
        return self.acceptance.first(self._length)

    def _judge(self, tokens: list[int]) -> None:
        guess, came = self._guess, tokens[self._place :]
        true = 0
        for guessed, token in zip(guess, came, strict=False):
            if guessed != token:
                self.acceptance.note(self._length, true, True)
                return
            true += 1
        if true:
            self.acceptance.note(self._length, true, False)
