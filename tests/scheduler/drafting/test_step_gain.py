"""The number of guesses against trying every number."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.scheduler.drafting.step_gain import CAUTION, LEAST_GAIN, StepCosts, StepGain

CHANCES = st.lists(st.floats(0.0, 1.0), max_size=12).map(
    lambda each: [math.prod(each[: i + 1]) for i in range(len(each))]
)


def test_costs_lie_on_lines() -> None:
    costs = StepCosts((1.0, 1.2, 1.2, 2.0))
    table = costs.upto(12)
    assert [table[rows] for rows in (1, 2, 3, 4, 6, 8, 12)] == pytest.approx([1.0, 1.2, 1.2, 1.2, 1.6, 2.0, 2.8])


@given(CHANCES, st.integers(1, 40), st.sampled_from([(1.0, 1.0), (1.0, 1.05), (1.0, 1.1, 1.2, 1.2), (1.0, 2.0)]))
def test_no_other_number_brings_more_tokens_a_second(chances: list[float], rows: int, costs: tuple[float, ...]) -> None:
    table = StepCosts(costs).upto(60)

    def rate(count: int) -> float:
        return (rows + sum(chances[:count])) / (table[rows] + CAUTION * (table[rows + count] - table[rows]))

    chosen = StepGain(StepCosts(costs), rows, rows, lost=0).choose(chances)
    worth = [count for count in range(len(chances) + 1) if chances[:count] == [c for c in chances[:count] if c >= 0.01]]
    best = max(rate(count) for count in worth)
    if chosen:
        assert StepGain(StepCosts(costs), rows, rows, lost=0).is_possible(len(chances))
    assert rate(chosen) == pytest.approx(best) or (chosen == 0 and best <= LEAST_GAIN * rate(0))


def test_what_one_sequence_takes_is_dearer_to_the_next() -> None:
    gain = StepGain(StepCosts((1.0, 1.0, 1.0, 1.0, 1.5)), rows=2, tokens=2, lost=0)  # free up to eight rows
    assert gain.choose([0.5] * 6) == 6
    assert gain.choose([0.5] * 6) == 0
    assert gain.choose([1.0] * 6) > 0


def test_a_step_missed_is_a_token_lost() -> None:
    free = StepCosts((1.0, 1.0))
    assert StepGain(free, 1, 1, lost=1).choose([0.9]) == 0
    assert StepGain(free, 1, 1, lost=1).choose([0.9, 0.8]) == 2


def test_hopeless_guesses_are_not_made_even_for_nothing() -> None:
    assert StepGain(StepCosts((1.0, 1.0)), 1, 1, lost=0).choose([0.5, 0.4, 0.001, 0.001]) == 2
