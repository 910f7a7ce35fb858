"""The stop-string matcher against str.find on the whole text."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.stop_strings import StopMatcher

letters = st.text(alphabet="ab", max_size=30)  # few letters: many matches, borders and overlaps
stops_of = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=4)


def pieces(text: str, cuts: Sequence[int]) -> list[str]:
    """The text cut at the given places."""
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[low:high] for low, high in itertools.pairwise(places)]


def expected(text: str, stops: Sequence[str], armed_from: int = 0) -> tuple[int, int, str] | None:
    """(end, start, stop) of the stop string completed first, the longest of those; by looking everywhere."""
    found = []
    for stop in stops:
        start = text.find(stop)
        while start >= 0 and start + len(stop) <= armed_from:
            start = text.find(stop, start + 1)
        if start >= 0:
            found.append((start + len(stop), start, stop))
    return min(found, default=None)


@given(text=letters, stops=stops_of, cuts=st.lists(st.integers(0, 30), max_size=10), include=st.booleans())
def test_any_cut_gives_what_find_gives(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    matcher = StopMatcher(stops, include)
    shown, stopped = "", None
    for piece in pieces(text, cuts):
        scan = matcher.push(piece)
        shown += scan.text
        stopped = scan.stop
    truth = expected(text, stops)
    if truth is None:
        assert stopped is None
        assert shown + matcher.finish() == text
    else:
        end, start, stop = truth
        assert stopped == matcher.stopped == stop
        assert shown + matcher.finish() == text[: end if include else start]


@given(text=letters, stops=stops_of, cuts=st.lists(st.integers(0, 30), max_size=10))
def test_no_more_is_held_back_than_must_be(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, seen = StopMatcher(stops), "", ""
    for piece in pieces(text, cuts):
        scan = matcher.push(piece)
        if scan.stop is not None:
            return
        shown += scan.text
        seen += piece
        held = seen[len(shown) :]
        assert shown + held == seen
        longest = max(n for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n]))
        assert len(held) == longest


@given(text=letters, stops=stops_of, unarmed=st.integers(0, 30), cuts=st.lists(st.integers(0, 30), max_size=6))
def test_unarmed_text_does_not_end(text: str, stops: list[str], unarmed: int, cuts: list[int]) -> None:
    unarmed = min(unarmed, len(text))
    matcher, shown, stopped = StopMatcher(stops), "", None
    for piece in pieces(text[:unarmed], [cut for cut in cuts if cut < unarmed]):
        scan = matcher.push(piece, armed=False)
        assert scan.stop is None
        shown += scan.text
    for piece in pieces(text[unarmed:], cuts):
        scan = matcher.push(piece)
        shown, stopped = shown + scan.text, scan.stop
    truth = expected(text, stops, unarmed)
    if truth is None:
        assert stopped is None
        assert shown + matcher.finish() == text
    else:
        assert stopped == truth[2]
        # Text shown before the matcher was armed cannot be taken back.
        assert shown == text[: max(truth[1], len(shown))]
        assert text[: truth[1]].startswith(shown) or len(shown) <= unarmed


def test_no_stops_pass_everything_through() -> None:
    matcher = StopMatcher(())
    assert matcher.push("abc") == ("abc", None)
    assert matcher.finish() == ""


def test_nothing_comes_after_the_stop() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("one\n") == ("one", None)
    assert matcher.push("\ntwo") == ("", "\n\n")
    assert matcher.push("three") == ("", "\n\n")
    assert matcher.finish() == ""


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopMatcher(["a", ""])


def test_hostile_stops_take_linear_time() -> None:
    stop = "a" * 10_000 + "b"
    matcher = StopMatcher([stop])
    start = time.perf_counter()
    for _ in range(2_000):
        matcher.push("a" * 20)
    assert time.perf_counter() - start < 5.0
    assert len(matcher.finish()) == 10_000
