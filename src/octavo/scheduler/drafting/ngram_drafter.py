"""Guesses what comes next in one text from what came next where its last tokens stood before."""

from __future__ import annotations

from octavo.scheduler.drafting.acceptance import LONGEST, Acceptance
from octavo.scheduler.drafting.ngram_index import Match, NgramIndex, continuation, match_length

_SOLID = 4
"""A repetition of so many tokens is taken for one that may go on after a token was changed in it."""

_MISSES = 2
"""So many tokens may have been changed since."""

_DARING = 2
"""Tokens that are guessed of a text of which no guess came true yet."""

_FADING = 0.9
"""What is left of the memory of a long repetition after each guess."""


class NgramDrafter:
    """One sequence's guesses, and what became of them. A guess is judged by the tokens that really came, whether it was
    put to the model or not, so nothing has to be tried in order to learn that it would be worth trying again.

    Where no n-gram is found right after a repetition has ended, it is taken to go on beyond the token that was changed:
    so an edited copy of a text is followed from one edit to the next.

    Args:
        shortest, longest: the lengths of the n-grams to look for.
        pool: how guesses about all sequences fare.
    """

    __slots__ = ("_acceptance", "_back", "_guess", "_index", "_length", "_longest", "_misses", "_place", "_reached")

    def __init__(self, shortest: int, longest: int, pool: Acceptance) -> None:
        self._index = NgramIndex(shortest, longest)
        self._acceptance = Acceptance(pool)
        self._guess: list[int] = []
        self._length = 0  # of the match that it came of
        self._place = 0  # the position of its first token
        self._back = 0  # so far before that it was found
        self._reached = 0  # the length of the repetition so far
        self._misses = 0  # wrong guesses since an n-gram was found
        self._longest = 0.0  # tokens in a row that came true of late

    def guess(self, tokens: list[int], count: int) -> list[int]:
        """``count`` tokens that may follow ``tokens``, or none; ``tokens`` begin with those of the call before."""
        self._judge(tokens)
        match = self._index.find(tokens)
        if match is not None:
            self._misses = 0
        elif self._reached >= _SOLID and self._misses <= _MISSES:
            match = Match(0, len(tokens) - self._back)
        else:
            self._guess = []
            return self._guess
        self._guess = continuation(tokens, match.place, count)
        self._place, self._back = len(tokens), len(tokens) - match.place
        self._length = match_length(tokens, match, LONGEST)
        if match.length:
            self._reached = self._length
        return self._guess

    def chances(self, count: int) -> list[float]:
        """For each of the first ``count`` tokens of the latest guess, the chance that it comes true together with those
        before it. Nothing is said of more than about twice as many as came true in a row of late: texts differ more
        in how long they repeat themselves than one tells from their first matches."""
        chances: list[float] = []
        chance, length = 1.0, self._length
        next_one = 0.0
        for _ in range(min(count, _DARING + int(2 * self._longest))):
            if length <= LONGEST:  # beyond, they are all alike
                next_one = self._acceptance.chance(length)
                length += 1
            chance *= next_one
            chances.append(chance)
        return chances

    def _judge(self, tokens: list[int]) -> None:
        if not self._guess:
            return
        length = self._length
        for guessed, token in zip(self._guess, tokens[self._place :], strict=False):
            self._acceptance.note(length, guessed == token)
            if guessed != token:
                self._misses += 1
                break
            length += 1
        self._reached = max(self._reached, length)
        self._longest = max(self._longest * _FADING, length - self._length)
