from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import EngineError
from octavo.executor.history import History

TOKENS = st.lists(st.integers(0, 20), min_size=1, max_size=200)


def expected(tokens: list[int], num_prompt: int, end: int) -> dict[int, float]:
    generated = Counter(tokens[num_prompt:end])
    return {token: float(generated[token]) for token in set(tokens[:end])}


def found(history: History, end: int) -> dict[int, float]:
    ids, counts = history.tally(end)
    assert len(set(ids.tolist())) == len(ids)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


@given(TOKENS, st.integers(1, 200), st.lists(st.tuples(st.integers(0, 150), TOKENS), max_size=20))
def test_tallies_follow_whatever_is_written(
    tokens: list[int], num_prompt: int, writes: list[tuple[int, list[int]]]
) -> None:
    history = History(tuple(tokens), num_prompt)
    known = list(tokens)
    assert found(history, len(known)) == expected(known, num_prompt, len(known))
    for start, more in writes:
        start = min(start, len(known))
        history.write(start, np.array(more, np.int64))
        known[start : start + len(more)] = more
        end = start + len(more)
        assert found(history, end) == expected(known, num_prompt, end)
        assert history.until(end).tolist() == known[:end]


def test_growth_token_by_token() -> None:
    history = History((3, 4), 2)
    known = [3, 4]
    for step in range(500):
        token = step * 7 % 90
        history.write(len(known), np.array([token], np.int64))
        known.append(token)
        if step % 3:
            assert found(history, len(known)) == expected(known, 2, len(known))


def test_a_gap_is_refused() -> None:
    with pytest.raises(EngineError, match="starts at position 3, but only 2 tokens are known"):
        History((3, 4), 2).write(3, np.array([5], np.int64))
