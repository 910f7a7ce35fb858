"""The device's sampler beside the host's, on the reference kernels: the same tokens, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import kernels
from octavo.executor.gpu.sampler import FAILURES, DeviceSampler, DrawRows
from octavo.executor.sampler import NO_TOKEN_LEFT, NOT_FINITE, Sampler
from octavo.executor.slots import SlotTable
from octavo.kernels.drawn import DrawFailure
from octavo.plan import ChunkResult, Sample, SamplingSpec, SlotInit, Want

VOCAB = 23
SLOTS = 6
REFERENCE = kernels.load("reference")
CPU = torch.device("cpu")
TOKENS = st.integers(0, VOCAB - 1)


@st.composite
def specs(draw: st.DrawFn) -> SamplingSpec:
    sometimes = st.booleans()
    extra: dict = {}
    if draw(sometimes):
        extra.update(top_k=draw(st.integers(0, VOCAB)), top_p=draw(st.sampled_from([1.0, 0.9, 0.5])))
        extra.update(min_p=draw(st.sampled_from([0.0, 0.1])))
    if draw(sometimes):
        extra["repetition_penalty"] = draw(st.sampled_from([1.0, 1.3, 0.8]))
        extra["presence_penalty"] = draw(st.sampled_from([0.0, 0.7, -0.5]))
        extra["frequency_penalty"] = draw(st.sampled_from([0.0, 0.4]))
    if draw(sometimes):
        biased = draw(st.lists(st.integers(-2, VOCAB + 2), unique=True, max_size=4))
        extra["logit_bias"] = tuple((token, draw(st.floats(-9, 9, width=32))) for token in biased)
    if draw(sometimes):
        extra["allowed_token_ids"] = tuple(draw(st.lists(TOKENS, min_size=1, max_size=5)))
    if draw(sometimes):
        # few tokens, so that prefixes really are said
        word = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)
        extra["bad_words"] = tuple(draw(st.lists(word, max_size=5)))
    if draw(sometimes):
        extra["min_tokens"] = draw(st.integers(0, 5))
        extra["stop_ids"] = tuple(draw(st.lists(TOKENS, max_size=3)))
    if draw(sometimes):
        extra["logprobs"] = draw(st.integers(0, 4))
    return SamplingSpec(temperature=draw(st.sampled_from([0.0, 0.7, 1.0, 3.0])), **extra)


class Both:
    """Some sequences, known to both samplers."""

    def __init__(self) -> None:
        self.table = SlotTable(SLOTS, 1, 4, VOCAB)
        self.host = Sampler(REFERENCE, self.table)
        self.device = DeviceSampler(REFERENCE, SLOTS, VOCAB, CPU)
        self.tokens: dict[int, list[int]] = {}  # by slot

    def take(self, slot: int, prompt: list[int], grown: list[int], spec: SamplingSpec, index: int = 0) -> None:
        init = SlotInit(slot, slot, f"r{slot}", index, 2**63 + slot, len(prompt), (*prompt, *grown), spec)
        self.table.take(init)
        self.device.take(init)
        self.tokens[slot] = [*prompt, *grown]

    def release(self, slot: int) -> None:
        self.table.release(slot)
        self.device.release(slot)
        del self.tokens[slot]

    def step(self, slots: list[int], logits: torch.Tensor, draws: list[tuple[int, ...]]) -> list[ChunkResult]:
        """Both sample; the results are the host's, and the sequences go on with the first sample of each."""
        positions = np.array([len(self.tokens[slot]) for slot in slots])
        wants = np.full(len(slots), Want.SAMPLE, np.uint8)
        for slot in slots:
            edits = self.table.edits[slot]
            if edits is not None:
                edits.history.write(len(self.tokens[slot]) - 1, np.array(self.tokens[slot][-1:]))
        expected = self.host.run(logits.clone(), np.array(slots), positions, wants, tuple(draws))
        assert self.on_device(slots, positions, logits, draws) == expected
        for slot, result in zip(slots, expected, strict=True):
            self.tokens[slot].append(result.samples[0].token if result.samples else 0)
        return expected

    def on_device(self, slots: list[int], positions, logits: torch.Tensor, draws) -> list[ChunkResult]:
        self.device.observe(
            torch.tensor([self.tokens[slot][-1] for slot in slots] + [5]),
            torch.tensor([*slots, -1]),  # padding is of no consequence
            torch.from_numpy(np.append(positions - 1, 3)),
        )
        sources = [row for row, indexes in enumerate(draws) for _ in indexes]
        once = sources == [*range(len(slots))]
        rows = DrawRows(
            torch.tensor(slots)[sources],
            torch.tensor([index for indexes in draws for index in indexes]),
            torch.from_numpy(positions)[sources],
            None if once else torch.tensor(sources),
        )
        needs = self.device.needs(slots)
        before = logits.clone()
        drawn = self.device.run(logits, rows, needs)
        assert torch.equal(logits.nan_to_num(7.0), before.nan_to_num(7.0))
        if needs.is_plain:
            assert torch.equal(drawn.tokens, self.device.draw(logits, rows).tokens)
        results: list[ChunkResult] = []
        at = 0
        for row, (slot, indexes) in enumerate(zip(slots, draws, strict=True)):
            mine = range(at, at + len(indexes))
            at += len(indexes)
            failure = drawn.failures[mine[0]].item()
            if failure:
                results.append(ChunkResult(error=FAILURES[DrawFailure(failure)]))
                continue
            count = self.table.spec[slot].logprobs
            top: tuple = ()
            if count:
                place = needs.reported.index(row)
                pairs = zip(drawn.top_ids[place].tolist(), drawn.top_logprobs[place].tolist(), strict=True)
                top = tuple(pairs)[:count]
            results.append(
                ChunkResult(
                    tuple(
                        Sample(drawn.tokens[i].item(), None if count is None else drawn.logprobs[i].item(), top)
                        for i in mine
                    )
                )
            )
        return results


def logits_of(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_tokens_and_log_probabilities_are_the_hosts(data: st.DataObject) -> None:
    both = Both()
    short = st.lists(st.integers(0, 5), min_size=1, max_size=7)
    for step in range(data.draw(st.integers(1, 8))):
        for slot in range(SLOTS):
            action = data.draw(st.sampled_from(["stay", "stay", "stay", "take"])) if step else "take"
            if action == "take":
                if slot in both.tokens and data.draw(st.booleans()):
                    both.release(slot)
                both.take(
                    slot, data.draw(short), data.draw(st.lists(st.integers(0, 5), max_size=7)), data.draw(specs())
                )
        slots = data.draw(st.permutations(sorted(both.tokens)))[: data.draw(st.integers(1, len(both.tokens)))]
        logits = logits_of(len(slots), data.draw(st.integers(0, 99)))
        if data.draw(st.integers(0, 5)) == 0:
            logits[data.draw(st.integers(0, len(slots) - 1)), 4] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        several = data.draw(st.integers(0, 3)) == 0
        draws = [data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)) if several else [0] for _ in slots]
        both.step(slots, logits, [tuple(indexes) for indexes in draws])


def test_rows_fail_for_the_hosts_reasons() -> None:
    both = Both()
    both.take(0, [1], [], SamplingSpec(allowed_token_ids=(4,), bad_words=((4,),)))
    both.take(1, [1], [], SamplingSpec(presence_penalty=1.0))
    both.take(2, [1], [], SamplingSpec(temperature=0.0))
    logits = logits_of(3, 0)
    logits[1, 3] = np.nan
    errors = [result.error for result in both.step([0, 1, 2], logits, [(0,)] * 3)]
    assert errors == [NO_TOKEN_LEFT, NOT_FINITE, None]


def test_a_long_bad_word_is_found_beside_older_short_ones() -> None:
    both = Both()
    both.take(0, [1, 2], [3], SamplingSpec(temperature=0.0, bad_words=((3, 7),)))
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = 5.0
    assert both.step([0], logits, [(0,)])[0].samples[0].token == 0
    long = (1, 2, 3, 4, 5, 6, 1, 2, 7)
    both.take(1, [*long[:-1]], [], SamplingSpec(temperature=0.0, bad_words=(long, (2, 99999, 3), (99999, 7))))
    assert both.step([1], logits, [(0,)])[0].samples[0].token == 0
    both.tokens[0].append(3)
    both.device.observe(torch.tensor([both.tokens[0][-2]]), torch.tensor([0]), torch.tensor([len(both.tokens[0]) - 2]))
    both.table.edits[0].history.write(len(both.tokens[0]) - 2, np.array(both.tokens[0][-2:]))
    assert both.step([0], logits, [(0,)])[0].samples[0].token == 0


@pytest.mark.parametrize("top", [3, VOCAB])
def test_a_searching_row_gets_the_hosts_scores(top: int) -> None:
    both = Both()
    banned = SamplingSpec(temperature=0.0, top=top, repetition_penalty=1.7, bad_words=((9,), (2, 4)))
    both.take(0, [1, 2], [], SamplingSpec(temperature=0.0, top=top))
    both.take(1, [1, 2], [], banned)
    both.take(2, [1, 2], [], SamplingSpec(top=top, allowed_token_ids=(9,), bad_words=((9,),)))
    logits = logits_of(4, 3)
    logits[3, 0] = np.inf
    slots = [0, 1, 2, 0]
    positions = np.full(4, 2)
    wants = np.full(4, Want.LOGPROBS, np.uint8)
    expected = both.host.run(logits.clone(), np.array(slots), positions, wants, ((),) * 4)
    found = both.device.search(logits, torch.tensor(slots), torch.from_numpy(positions), top)
    for row, result in enumerate(expected):
        failure = DrawFailure(found.failures[row].item())
        if result.error is not None:
            assert FAILURES[failure] == result.error
            continue
        pairs = zip(found.ids[row].tolist(), found.scores[row].tolist(), strict=True)
        assert failure is DrawFailure.NONE
        assert tuple(pair for pair in pairs if pair[1] != -np.inf) == result.top


def test_what_a_step_needs_is_known_beforehand() -> None:
    both = Both()
    both.take(0, [1], [], SamplingSpec(top_k=3, top_p=0.5, min_p=0.1, logprobs=0))
    both.take(1, [1], [], SamplingSpec(logprobs=5))
    both.take(2, [1], [], SamplingSpec(logit_bias=((3, 1.0),)))
    both.take(3, [1], [], SamplingSpec(frequency_penalty=1.0, logprobs=2 * VOCAB))
    needs = both.device.needs
    assert needs([0]).is_plain
    assert (needs([0, 1]).reported, needs([0, 1]).alternatives) == ((1,), 5)
    assert needs([2]).edited
    assert needs([2, 3]).alternatives == VOCAB
    assert [both.device.looks_back(slot) for slot in range(5)] == [False, False, False, True, False]
    both.release(3)
    both.release(1)
    assert needs([0, 1, 3]).is_plain


def test_a_draw_writes_where_it_is_told_and_padding_does_no_harm() -> None:
    both = Both()
    both.take(0, [1], [], SamplingSpec(temperature=0.0))
    logits = logits_of(2, 1)
    out = both.device.draw(logits, DrawRows(*torch.tensor([[0, -1], [0, 0], [1, 0]])))
    target = type(out)(*(torch.full_like(column, 77) for column in out))
    again = both.device.draw(logits, DrawRows(*torch.tensor([[0, -1], [0, 0], [1, 0]])), target)
    assert again is target
    assert target.tokens[0] == logits[0].argmax()
    assert all(map(torch.equal, out, target))
