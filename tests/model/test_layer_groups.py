"""Layers shared out to groups: nothing lost, nothing mixed, and little left empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.model.layer_groups import MOST_GROUPS, group_layers
from octavo.plan import LayerGroup

CONTEXT = 1000


def pattern(layers: int, every: int) -> list[int | None]:
    """One layer in ``every`` sees all, the others are windowed."""
    return [None if layer % every == every - 1 else 512 for layer in range(layers)]


@given(windows=st.lists(st.sampled_from([None, 4, 512]), min_size=1, max_size=70))
def test_every_layer_has_a_place_of_its_own_among_its_kind(windows: list[int | None]) -> None:
    groups, places = group_layers(windows, CONTEXT)
    assert len(places) == len(set(places)) == len(windows)
    for window, (group, place) in zip(windows, places, strict=True):
        assert groups[group].window == window
        assert 0 <= place < groups[group].num_layers
    assert len({group.num_layers for group in groups}) == 1
    assert len(groups) <= MOST_GROUPS
    filled = [sum(group == number for group, _ in places) for number in range(len(groups))]
    assert min(filled) > 0
    empty = dict.fromkeys(windows, 0)
    for group, count in zip(groups, filled, strict=True):
        empty[group.window] += group.num_layers - count
    assert all(count < groups[0].num_layers for count in empty.values())  # at most one group of a kind is not full


@given(counts=st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_no_other_size_would_leave_less_empty(counts: tuple[int, int]) -> None:
    full, windowed = counts

    def cost(size: int) -> int:
        return 4 * (-full % size) + -windowed % size

    groups, _ = group_layers([None] * full + [9] * windowed, CONTEXT)
    for size in range(1, max(counts) + 1):
        if -(-full // size) + -(-windowed // size) <= MOST_GROUPS:
            assert cost(groups[0].num_layers) <= cost(size)


@pytest.mark.parametrize(
    ("windows", "size", "full", "windowed"),
    [
        (pattern(26, 2), 13, 1, 1),  # Gemma 2, 2B
        (pattern(42, 2), 21, 1, 1),  # 9B
        (pattern(46, 2), 23, 1, 1),  # 27B
        (pattern(26, 6), 4, 1, 6),  # Gemma 3, 1B
        (pattern(34, 6), 5, 1, 6),  # 4B
        (pattern(48, 6), 8, 1, 5),  # 12B
        (pattern(62, 6), 11, 1, 5),  # 27B
        ([None] * 28, 28, 1, 0),
        ([512] * 32, 32, 0, 1),
    ],
)
def test_known_models(windows: list[int | None], size: int, full: int, windowed: int) -> None:
    groups, _ = group_layers(windows, CONTEXT)
    assert groups == (LayerGroup(size),) * full + (LayerGroup(size, 512),) * windowed


def test_a_window_as_wide_as_the_context_sees_all() -> None:
    assert group_layers([512, None, 512], 512) == ((LayerGroup(3),), ((0, 0), (0, 1), (0, 2)))
