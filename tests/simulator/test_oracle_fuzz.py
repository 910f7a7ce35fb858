"""Every case is a proof that no block was shared wrongly, written while shared, or published early."""

from __future__ import annotations

import os

import pytest
from oracle_case import random_case

CASES = int(os.environ.get("OCTAVO_FUZZ_CASES", "600"))
BATCH = 50


@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, CASES, BATCH))
def test_random_loads_are_oracle_clean(first: int) -> None:
    for seed in range(first, min(first + BATCH, CASES)):
        try:
            random_case(seed)
        except BaseException as error:
            raise AssertionError(f"case with seed {seed}: {error!r}") from error


@pytest.mark.fuzz
@pytest.mark.long
@pytest.mark.parametrize("first", range(100_000, 110_000, 500))
def test_ten_thousand_random_loads_are_oracle_clean(first: int) -> None:
    for seed in range(first, first + 500):
        try:
            random_case(seed)
        except BaseException as error:
            raise AssertionError(f"case with seed {seed}: {error!r}") from error


@pytest.mark.parametrize("seed", [3, 14, 159, 2653])
def test_plans_are_bit_identical_on_rerun(seed: int) -> None:
    assert random_case(seed).plans == random_case(seed).plans
