"""Masks, biases and penalties against loops over the vocabulary, and against transformers' processors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.edits import BatchEdits, LogitEdits
from octavo.plan import SamplingSpec, SlotInit

VOCAB = 24
TOKEN = st.integers(0, VOCAB - 1)


def slot_init(tokens: tuple[int, ...], num_prompt: int, spec: SamplingSpec) -> SlotInit:
    return SlotInit(0, 0, "r", 0, 0, num_prompt, tokens, spec)


def edit(logits: torch.Tensor, rows: list[tuple[tuple[int, ...], int, SamplingSpec]]) -> torch.Tensor:
    batch = BatchEdits(logits.shape[1])
    for row, (tokens, num_prompt, spec) in enumerate(rows):
        edits = LogitEdits.of(slot_init(tokens, num_prompt, spec), logits.shape[1])
        if edits is not None:
            batch.add(row, edits, len(tokens))
    changed = logits.clone()
    batch.apply(changed)
    return changed


def one_row_slowly(logits: list[float], tokens: tuple[int, ...], num_prompt: int, spec: SamplingSpec) -> list[float]:
    output, generated = list(logits), list(tokens[num_prompt:])
    bias = dict(spec.logit_bias)
    for token in range(len(logits)):
        if spec.allowed_token_ids is not None and token not in spec.allowed_token_ids:
            output[token] = -math.inf
        output[token] += bias.get(token, 0.0)
        for word in spec.bad_words:
            before = word[:-1]
            if word[-1] == token and (not before or tokens[-len(before) :] == before):
                output[token] = -math.inf
        if len(generated) < spec.min_tokens and token in spec.stop_ids:
            output[token] = -math.inf
        if token in tokens:
            penalty = spec.repetition_penalty
            output[token] = output[token] / penalty if output[token] > 0 else output[token] * penalty
        output[token] -= spec.frequency_penalty * generated.count(token)
        output[token] -= spec.presence_penalty * (token in generated)
    return output


SPECS = st.builds(
    SamplingSpec,
    repetition_penalty=st.sampled_from([1.0, 0.5, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -0.2]),
    logit_bias=st.dictionaries(TOKEN, st.floats(-5, 5, width=32), max_size=4).map(lambda x: tuple(x.items())),
    allowed_token_ids=st.none() | st.lists(TOKEN, min_size=1, max_size=12).map(tuple),
    bad_words=st.lists(st.lists(TOKEN, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    min_tokens=st.integers(0, 6),
    stop_ids=st.lists(TOKEN, max_size=3).map(tuple),
)
HISTORIES = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(tuple)  # few tokens: phrases do come up


@given(st.lists(st.tuples(HISTORIES, st.integers(1, 60), SPECS), min_size=1, max_size=5), st.integers(0, 2**31))
def test_every_edit_is_what_a_loop_over_the_vocabulary_does(rows, seed: int) -> None:
    rows = [(tokens, min(prompt, len(tokens)), spec) for tokens, prompt, spec in rows]
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    changed = edit(logits, rows)
    slowly = [one_row_slowly(line, *row) for line, row in zip(logits.tolist(), rows, strict=True)]
    np.testing.assert_allclose(changed.numpy(), np.array(slowly), rtol=1e-5, atol=1e-5)


def test_tokens_outside_the_vocabulary_change_nothing() -> None:
    spec = SamplingSpec(
        logit_bias=((VOCAB, 3.0), (1, 2.0)),
        allowed_token_ids=(1, 2, VOCAB + 5),
        bad_words=((VOCAB,), (0, VOCAB + 1)),
        min_tokens=3,
        stop_ids=(VOCAB + 2,),
    )
    changed = edit(torch.zeros(1, VOCAB), [((0,), 1, spec)])
    assert torch.isfinite(changed[0]).nonzero().flatten().tolist() == [1, 2]
    assert changed[0, 1:3].tolist() == [2.0, 0.0]


def test_nothing_is_kept_for_a_sequence_that_asks_for_nothing() -> None:
    plain = SamplingSpec(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, min_tokens=4, logprobs=3)
    assert LogitEdits.of(slot_init((1, 2), 2, plain), VOCAB) is None


@pytest.mark.parametrize("penalty", [0.7, 1.2])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, tokens = torch.randn(1, VOCAB) * 4, (3, 7, 3, 1)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits.clone())
    assert torch.equal(edit(logits, [(tokens, 2, SamplingSpec(repetition_penalty=penalty))]), theirs)


def test_bad_words_are_transformers() -> None:
    from transformers import NoBadWordsLogitsProcessor

    words = ((4,), (3, 1, 5), (1, 6), (2, 1, 7), (8, 9))
    logits, tokens = torch.randn(1, VOCAB), (2, 3, 1)
    theirs = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=0)(
        torch.tensor([tokens]), logits.clone()
    )
    ours = edit(logits, [(tokens, 1, SamplingSpec(bad_words=words))])
    assert torch.equal(ours, theirs)
    assert torch.isneginf(ours[0]).nonzero().flatten().tolist() == [4, 5, 6]


def test_min_tokens_is_transformers() -> None:
    from transformers import MinNewTokensLengthLogitsProcessor

    logits, spec = torch.randn(1, VOCAB), SamplingSpec(min_tokens=3, stop_ids=(5, 6))
    for length in range(2, 8):
        tokens = tuple(range(8, 8 + length))
        theirs = MinNewTokensLengthLogitsProcessor(2, 3, [5, 6])(torch.tensor([tokens]), logits.clone())
        ours = edit(logits, [(tokens, 2, spec)])
        assert torch.equal(ours, theirs)
        assert bool(torch.isneginf(ours).any()) == (length < 5)


@given(HISTORIES, st.integers(1, 60), SPECS, st.integers(1, 6), st.integers(0, 2**31))
def test_several_rows_of_one_sequence_each_see_their_own_past(
    tokens: tuple[int, ...], prompt: int, spec: SamplingSpec, rows: int, seed: int
) -> None:
    """As in a step with drafts: each row's logits are for the token after one more of them."""
    known = max(1, len(tokens) - rows + 1)
    rows, prompt = len(tokens) - known + 1, min(prompt, known)
    edits = LogitEdits.of(slot_init(tokens[:known], prompt, spec), VOCAB)
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))
    changed = logits.clone()
    if edits is not None:
        edits.history.write(known, np.array(tokens[known:], np.int64))
        batch = BatchEdits(VOCAB)
        for row in range(rows):
            batch.add(row, edits, known + row)
        batch.apply(changed)
    expected = [one_row_slowly(logits[row].tolist(), tokens[: known + row], prompt, spec) for row in range(rows)]
    np.testing.assert_allclose(changed.numpy(), np.array(expected, np.float32), rtol=1e-5, atol=1e-5)
