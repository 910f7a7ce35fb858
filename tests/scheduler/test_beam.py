"""Beam search beside plain enumeration: a search wide enough to keep everything must find the best of everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_case import STOP, Case, expect_beams

from octavo.config import SchedulerConfig
from octavo.request import Request, SamplingParams
from octavo.scheduler import beam
from octavo.simulator.oracle import chain, likeliest

VOCAB = 3


def everything(prompt: list[int], length: int, penalty: float, stops: bool) -> list[tuple[float, list[int]]]:
    """Every possible continuation with its score, best first."""
    found = []
    for size in range(1, length + 1):
        for tokens in itertools.product(range(VOCAB), repeat=size):
            ended = [stops and token == STOP for token in tokens]
            if any(ended[:-1]) or not (ended[-1] or size == length):
                continue
            score = 0.0
            for place, token in enumerate(tokens):
                digest = chain(None, [*prompt, *tokens[:place]])[-1]
                score += dict(likeliest(digest, VOCAB, VOCAB))[token]
            found.append((score / size**penalty, list(tokens)))
    return sorted(found, key=lambda entry: -entry[0])


@pytest.mark.parametrize("stops", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("prompt", [[1], [2, 1, 2, 1, 2]])
def test_a_wide_search_finds_the_best_of_all(prompt: list[int], penalty: float, stops: bool) -> None:
    width = VOCAB**3
    case = Case(SchedulerConfig(num_blocks=400, block_size=2, max_num_seqs=width), vocab_size=VOCAB)
    params = SamplingParams(n=5, beam_width=width, max_tokens=3, length_penalty=penalty)
    request = case.add(prompt, params, stops=stops)
    assert request is not None
    case.drain()
    best = everything(prompt, 3, penalty, stops)[:5]
    assert [seq.output_token_ids for seq in request.sequences] == [tokens for _, tokens in best]
    scores = [seq.cumulative_logprob / len(seq.output_token_ids) ** penalty for seq in request.sequences]
    assert scores == pytest.approx([score for score, _ in best])
    assert [seq.finish_reason for seq in request.sequences] == [
        "stop" if stops and tokens[-1] == STOP else "length" for _, tokens in best
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    width=st.integers(2, 5),
    max_tokens=st.integers(1, 12),
    penalty=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),
    early=st.booleans(),
    vocab_size=st.integers(2, 6),
)
def test_a_narrow_search_is_the_plain_one(
    prompt: list[int], width: int, max_tokens: int, penalty: float, early: bool, vocab_size: int
) -> None:
    case = Case(SchedulerConfig(num_blocks=200, block_size=3, max_num_seqs=8), vocab_size=vocab_size)
    params = SamplingParams(
        n=width, beam_width=width, max_tokens=max_tokens, length_penalty=penalty, early_stopping=early
    )
    request = case.add(prompt, params)
    assert request is not None
    case.drain()
    assert [seq.output_token_ids for seq in request.sequences] == expect_beams(request, vocab_size)


def request_of(stop_ids: tuple[int, ...] = (0,), **keywords: object) -> Request:
    params = SamplingParams(beam_width=2, **keywords)  # type: ignore[arg-type]
    return Request("r", [5], params, max_new_tokens=9, stop_ids=stop_ids)


def test_only_candidates_among_the_best_may_finish() -> None:
    from octavo.request import Sequence

    request = request_of()
    first, second = Sequence(0, request, 0, [5, 1]), Sequence(1, request, 0, [5, 2])
    first.cumulative_logprob, second.cumulative_logprob = -1.0, -1.1
    step = beam.advance(request, [(first, ((3, -0.1), (0, -0.4))), (second, ((4, -0.1), (0, -0.2)))])
    # The order is 3 (-1.1), 4 (-1.2), the second's end (-1.3), the first's (-1.4): no end is among the best two.
    assert [(extension.parent, extension.token) for extension in step.running] == [(first, 3), (second, 4)]
    assert step.finished == []
    step = beam.advance(request, [(first, ((0, -0.1), (3, -0.4))), (second, ((0, -0.05), (4, -0.9)))])
    assert [(extension.parent, extension.token) for extension in step.finished] == [(first, 0), (second, 0)]
    assert [extension.token for extension in step.running] == [3, 4]


@pytest.mark.parametrize(("ends", "wanted"), [(0, 8), (1, 8), (2, 12), (9, 40)])
def test_enough_candidates_are_asked_for(ends: int, wanted: int) -> None:
    """Though every stop token were among the best of every beam, ``beam_width`` unfinished ones are known."""
    assert beam.candidates_wanted(4, ends) == wanted
