"""Sampling parameters: what a value of None becomes, and how many sequences they ask for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest

from octavo import SamplingParams
from octavo.errors import SamplingParamsError

DEFAULTS = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.1}
NAMES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def resolved(defaults: dict[str, Any], **keywords: Any) -> tuple[Any, ...]:
    params = SamplingParams(**keywords).resolve(defaults)
    return tuple(getattr(params, name) for name in NAMES)


def test_the_model_fills_what_was_left_open() -> None:
    assert resolved({}) == (1.0, 0, 1.0, 0.0, 1.0)
    assert resolved(DEFAULTS) == (0.6, 20, 0.95, 0.1, 1.1)
    assert resolved(DEFAULTS, temperature=0.0, top_k=0) == (0.0, 0, 0.95, 0.1, 1.1)
    assert resolved({**DEFAULTS, "do_sample": False}) == (0.0, 20, 0.95, 0.1, 1.1)
    assert resolved({"do_sample": False}, temperature=0.9)[0] == 0.9
    assert resolved({"temperature": None}) == (1.0, 0, 1.0, 0.0, 1.0)


def test_a_search_takes_the_penalty_alone() -> None:
    assert resolved(DEFAULTS, beam_width=2) == (0.0, 0, 1.0, 0.0, 1.1)
    kept = SamplingParams(beam_width=3, n=2, max_tokens=7, length_penalty=0.5, early_stopping=True, seed=4)
    after = kept.resolve(DEFAULTS)
    for item in dataclasses.fields(SamplingParams):
        if item.name not in NAMES:
            assert getattr(after, item.name) == getattr(kept, item.name)


def test_the_models_length_is_a_default_too() -> None:
    assert SamplingParams().resolve({"max_new_tokens": 5}).max_tokens == 5
    assert SamplingParams(max_tokens=9).resolve({"max_new_tokens": 5}).max_tokens == 9
    assert SamplingParams(min_tokens=8).resolve({"max_new_tokens": 5}).max_tokens == 8
    assert SamplingParams().resolve({}).max_tokens is None


@pytest.mark.parametrize(
    ("keywords", "count"),
    [({}, 1), ({"n": 3}, 3), ({"n": 2, "best_of": 5}, 5), ({"n": 2, "beam_width": 4}, 4), ({"best_of": 1}, 1)],
)
def test_how_many_sequences_grow(keywords: dict[str, int], count: int) -> None:
    assert SamplingParams(**keywords).num_sequences == count  # type: ignore[arg-type]


def test_stop_strings() -> None:
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop="end").stop_strings == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")


def test_they_are_frozen_and_can_be_copied() -> None:
    params = SamplingParams(n=2, seed=7, logit_bias={5: 1.0})
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.n = 3  # type: ignore[misc]
    for other in (copy.copy(params), copy.deepcopy(params), pickle.loads(pickle.dumps(params))):
        assert other == params
    with pytest.raises(SamplingParamsError, match="did you mean 'top_p'"):
        dataclasses.replace(params, topp=0.5)
