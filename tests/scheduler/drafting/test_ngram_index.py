"""The index against a search through the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from octavo.scheduler.drafting.ngram_index import Match, NgramIndex, continuation, match_length

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def search(tokens: list[int], shortest: int, longest: int) -> Match | None:
    for length in range(longest, shortest - 1, -1):
        for place in range(len(tokens) - 1, length - 1, -1):
            if len(tokens) > length and tokens[place - length : place] == tokens[-length:]:
                return Match(length, place)
    return None


@given(TEXTS, st.integers(1, 3), st.integers(0, 3), st.data())
def test_it_finds_what_a_search_finds(text: list[int], shortest: int, more: int, data: st.DataObject) -> None:
    index = NgramIndex(shortest, shortest + more)
    length = 0
    while length < len(text):  # however many tokens come between two look-ups
        length = data.draw(st.integers(length + 1, len(text)))
        expected = search(text[:length], shortest, shortest + more)
        assert index.find(text[:length]) == expected
        assert index.find(text[:length]) == expected  # asked again, it does not find the text's own end


def test_the_beginning_of_a_text_is_no_run_of_zeros() -> None:
    assert NgramIndex(2, 4).find([0]) is None
    assert NgramIndex(2, 4).find([0, 7, 0]) is None
    assert NgramIndex(1, 4).find([0, 7, 0]) == Match(1, 1)


@given(TEXTS, st.integers(1, 20))
def test_a_text_that_runs_out_goes_on_with_itself(text: list[int], count: int) -> None:
    for place in range(len(text)):
        whole = list(text)
        for _ in range(count):
            whole.append(whole[len(whole) - (len(text) - place)])
        assert continuation(text, place, count) == whole[len(text) :]


@given(TEXTS)
def test_the_length_of_a_match(text: list[int]) -> None:
    match = search(text, 1, 3)
    if match is None:
        return
    length = match_length(text, match, 8)
    assert match.length <= length <= 8
    assert text[match.place - length : match.place] == text[-length:]
    if length < min(8, match.place):
        assert text[match.place - length - 1] != text[-length - 1]
