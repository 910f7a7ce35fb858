"""Chances follow what was seen."""

import pytest

from octavo.scheduler.drafting.acceptance import LONGEST, Acceptance


def test_longer_matches_are_trusted_more_before_anything_was_seen() -> None:
    chances = [Acceptance(Acceptance()).chance(length) for length in range(LONGEST + 3)]
    assert chances == sorted(chances)
    assert chances[0] == 0.0
    assert 0.6 < chances[LONGEST] == chances[LONGEST + 2] < 1.0


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_is_seen_counts_and_what_is_long_ago_does_not(share: float) -> None:
    text = Acceptance(Acceptance())
    for true in [False] * 50 + [True] * 50:
        text.note(3, true)
    for i in range(100):
        text.note(3, i % 4 < 4 * share)
    assert abs(text.chance(3) - share) < 0.12
    assert text.chance(4) == Acceptance(Acceptance()).chance(4)


def test_a_new_text_begins_with_what_others_told() -> None:
    pool = Acceptance()
    first, second = Acceptance(pool), Acceptance(pool)
    for _ in range(100):
        first.note(2, False)
    assert second.chance(2) == pool.chance(2) < 0.05
    for _ in range(6):
        second.note(2, True)
    assert second.chance(2) > 0.6
    assert first.chance(2) < 0.1
