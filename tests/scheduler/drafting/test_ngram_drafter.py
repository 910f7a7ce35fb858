"""What is guessed of a text that is being written, and what is learned from it."""

import random

from octavo.scheduler.drafting.acceptance import Acceptance
from octavo.scheduler.drafting.ngram_drafter import NgramDrafter


def drafter(shortest: int = 2) -> NgramDrafter:
    return NgramDrafter(shortest, 4, Acceptance())


def read(made: NgramDrafter, text: list[int], begin: int, count: int = 4) -> list[tuple[list[int], list[float]]]:
    """The guesses, with their chances, before each token from ``begin`` on."""
    return [(made.guess(text[:end], count), made.chances(count)) for end in range(begin, len(text))]


def test_text_that_repeats_is_guessed_and_trusted_more_and_more() -> None:
    text = list(range(20)) * 4
    said = read(drafter(), text, 20)
    assert [guess for guess, _ in said[:2]] == [[], []]  # one token alone is no match
    assert all(guess == text[end : end + 4] for end, (guess, _) in enumerate(said[2:-4], 22))
    first, last = said[2][1], said[-1][1]
    assert len(first) < len(last) == 4  # so far-reaching is only a text that has kept its word
    assert first[0] < 0.6
    assert last[3] > 0.85
    assert last == sorted(last, reverse=True)


def test_text_that_never_repeats_is_left_alone() -> None:
    rng = random.Random(0)
    text = list(range(100)) + [rng.randrange(100, 104) for _ in range(300)]  # short matches that mean nothing
    made = drafter()
    assert all(guess == [] for guess, _ in read(made, text[:100], 1))
    read(made, text, 100)
    made.guess(text, 4)
    assert made.chances(4)[0] < 0.5
    assert len(made.chances(15)) < 8


def test_a_copy_with_one_token_changed_is_followed_beyond_it() -> None:
    original = list(range(40))
    copy = list(range(40))
    copy[20] = 99
    made, text = drafter(), original + copy
    said = read(made, text, 45)
    assert said[61 - 45][0] == [21, 22, 23, 24]  # right after the change, where no two tokens stood together before
    assert said[62 - 45][0] == [22, 23, 24, 25]
    short = [1, 2, 3, 50, 51, 52, 1, 2, 99]  # a match too short to be a copy
    made = drafter()
    assert made.guess(short[:8], 2) == [3, 50]
    assert made.guess(short, 2) == []


def test_after_changes_enough_it_is_no_copy_any_more() -> None:
    made = drafter()
    read(made, [*range(20), *range(10)], 20)
    text = [*range(20), *range(10)]
    guesses = []
    for token in (101, 102, 103, 104):
        text.append(token)
        guesses.append(made.guess(text, 2))
    assert guesses == [[11, 12], [12, 13], [], []]


def test_tokens_that_came_unseen_are_judged_too() -> None:
    """Between two guesses any number of tokens may have come."""
    made, text = drafter(), list(range(10)) * 3
    made.guess(text[:13], 6)
    made.guess(text[:19], 6)
    assert len(made.chances(15)) >= 12
