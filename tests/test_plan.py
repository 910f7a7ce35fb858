"""What an executor is told of a request's sampling."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.plan import SamplingSpec


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 1},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": ((1, 1.0),)},
        {"allowed_token_ids": (1,)},
        {"bad_words": ((1,),)},
        {"min_tokens": 1},
    ],
)
def test_plain_means_temperature_alone(change: dict[str, Any]) -> None:
    assert SamplingSpec(temperature=0.3, logprobs=5).is_plain
    assert not SamplingSpec(**change).is_plain
