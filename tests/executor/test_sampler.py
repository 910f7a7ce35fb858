"""The sampler on made-up logits."""

import numpy as np
import pytest
import torch

from octavo import kernels
from octavo.executor.sampler import NO_TOKEN_LEFT, NOT_FINITE, Sampler
from octavo.executor.slots import SlotTable
from octavo.plan import ChunkResult, SamplingSpec, SlotInit, Want

VOCAB = 97
GREEDY = SamplingSpec(temperature=0.0)


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request: pytest.FixtureRequest):
    return kernels.load(request.param)


class Rows:
    """A slot table whose slot ``i`` holds sequence ``specs[i]``, and a sampler over it."""

    def __init__(
        self, backend, specs: list[SamplingSpec], tokens: tuple[int, ...] = (1, 2, 3), vocab: int = VOCAB
    ) -> None:
        self.state = SlotTable(len(specs), 1, 4, vocab)
        self.length = len(tokens)
        self.sampler = Sampler(backend, self.state)
        for slot, spec in enumerate(specs):
            self.state.take(SlotInit(slot, slot, f"r{slot}", 0, slot, 2, tokens, spec))

    def run(self, logits, draws=None, wants=None, slots=None) -> list[ChunkResult]:
        slots = np.arange(len(logits)) if slots is None else np.array(slots)
        return self.sampler.run(
            logits.clone(),
            slots,
            np.full(len(logits), self.length),
            np.array(wants or [Want.SAMPLE] * len(logits), np.uint8),
            tuple(draws or [(0,)] * len(logits)),
        )


def logits_of(rows: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def tokens_of(results: list[ChunkResult]) -> list[int]:
    return [sample.token for result in results for sample in result.samples]


def test_greedy_is_the_arg_max(backend) -> None:
    logits = logits_of(5)
    results = Rows(backend, [GREEDY] * 5).run(logits)
    assert tokens_of(results) == logits.argmax(1).tolist()
    assert all(result.samples[0].logprob is None and result.samples[0].top == () for result in results)


def test_a_seed_draws_the_same_whoever_shares_the_batch(backend) -> None:
    specs = [SamplingSpec(temperature=0.5 + 0.2 * slot, top_k=slot * 3, top_p=1 - 0.05 * slot) for slot in range(6)]
    rows, logits = Rows(backend, specs), logits_of(6)
    together = tokens_of(rows.run(logits))
    alone = [tokens_of(rows.run(logits[slot : slot + 1], slots=[slot]))[0] for slot in range(6)]
    backwards = tokens_of(rows.run(logits.flip(0), slots=[5, 4, 3, 2, 1, 0]))
    assert together == alone == backwards[::-1]


def test_seed_index_and_position_each_key_the_noise(backend) -> None:
    logits = torch.zeros(1, 5000)
    rows = Rows(backend, [SamplingSpec()] * 2, vocab=5000)
    first = tokens_of(rows.run(logits))
    assert first == tokens_of(rows.run(logits))
    assert first != tokens_of(rows.run(logits, slots=[1]))  # another seed
    assert first != tokens_of(rows.run(logits, draws=[(1,)]))
    rows.length += 1
    assert first != tokens_of(rows.run(logits))


def test_several_draws_from_one_row_are_those_of_several_rows(backend) -> None:
    rows, logits = Rows(backend, [SamplingSpec(), GREEDY, SamplingSpec(top_k=9)]), logits_of(3)
    results = rows.run(logits, draws=[(4, 0, 7), (0,), (2, 3)])
    assert [len(result.samples) for result in results] == [3, 1, 2]
    for place, index in enumerate((4, 0, 7)):
        assert results[0].samples[place] == rows.run(logits[:1], draws=[(index,)])[0].samples[0]
    for place, index in enumerate((2, 3)):
        assert results[2].samples[place] == rows.run(logits[2:], draws=[(index,)], slots=[2])[0].samples[0]


def test_the_slots_own_sample_is_the_one_of_its_own_index(backend) -> None:
    rows = Rows(backend, [SamplingSpec()])
    results = rows.run(logits_of(1), draws=[(5, 0, 6)])
    assert rows.state.last_token[0] == results[0].samples[1].token


@pytest.mark.parametrize("edited", [False, True])
def test_logprobs_are_of_the_models_own_distribution(backend, edited: bool) -> None:
    extra = {"repetition_penalty": 1.5, "logit_bias": ((4, 9.0),)} if edited else {}
    specs = [SamplingSpec(temperature=2.0, logprobs=count, **extra) for count in (0, 3, None, 5)]
    logits = logits_of(4)
    expected = torch.log_softmax(logits.double(), 1)
    results = Rows(backend, specs).run(logits, draws=[(0,), (0, 1), (0,), (0,)])
    assert results[2].samples[0].logprob is None
    for row, count in ((0, 0), (1, 3), (3, 5)):
        for sample in results[row].samples:
            assert sample.logprob == pytest.approx(expected[row, sample.token].item(), abs=1e-5)
            best = expected[row].topk(count)
            assert [token for token, _ in sample.top] == best.indices.tolist()
            assert [value for _, value in sample.top] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_row_that_is_not_finite_fails_alone(backend, poison: float, everywhere: bool) -> None:
    specs = [GREEDY, SamplingSpec(logprobs=2), SamplingSpec(top_p=0.5), SamplingSpec(presence_penalty=1.0)]
    rows, logits = Rows(backend, specs), logits_of(4)
    healthy = rows.run(logits)
    for row in range(4):
        poisoned = logits.clone()
        poisoned[row, slice(None) if everywhere else 17] = poison
        results = rows.run(poisoned)
        assert results[row] == ChunkResult(error=NOT_FINITE)
        assert [*results[:row], *results[row + 1 :]] == [*healthy[:row], *healthy[row + 1 :]]


def test_large_but_finite_logits_are_no_error(backend) -> None:
    logits = torch.full((1, VOCAB), 3e37)
    logits[0, 8] = 3.1e37
    assert tokens_of(Rows(backend, [GREEDY]).run(logits)) == [8]


def test_a_row_without_any_token_left_fails_alone(backend) -> None:
    empty = SamplingSpec(allowed_token_ids=(4, 5), bad_words=((4,), (3, 5)))
    rows, logits = Rows(backend, [GREEDY, empty, GREEDY]), logits_of(3)
    results = rows.run(logits)
    assert results[1] == ChunkResult(error=NO_TOKEN_LEFT)
    best = logits.argmax(1).tolist()
    assert tokens_of(results) == [best[0], best[2]]


def test_masked_tokens_are_never_drawn(backend) -> None:
    spec = SamplingSpec(temperature=5.0, allowed_token_ids=(3, 8, 11), bad_words=((8,),))
    results = Rows(backend, [spec]).run(logits_of(1), draws=[tuple(range(300))])
    assert set(tokens_of(results)) == {3, 11}


@pytest.mark.parametrize(
    ("spec", "warper"),
    [
        (SamplingSpec(top_k=4), ("TopKLogitsWarper", 4)),
        (SamplingSpec(top_p=0.6), ("TopPLogitsWarper", 0.6)),
        (SamplingSpec(min_p=0.2), ("MinPLogitsWarper", 0.2)),
    ],
)
def test_truncation_keeps_what_transformers_keeps(backend, spec: SamplingSpec, warper: tuple[str, float]) -> None:
    import transformers

    logits = logits_of(1, 12, seed=3) / 2
    kept = getattr(transformers, warper[0])(warper[1])(None, logits.clone())
    expected = set(torch.isfinite(kept[0]).nonzero().flatten().tolist())
    assert 1 < len(expected) < 12
    results = Rows(backend, [spec], vocab=12).run(logits, draws=[tuple(range(3000))])
    assert set(tokens_of(results)) == expected


def test_draws_follow_the_distribution(backend) -> None:
    logits, number = logits_of(1, 8, seed=5) / 3, 20_000
    results = Rows(backend, [SamplingSpec(temperature=0.8)], vocab=8).run(logits, draws=[tuple(range(number))])
    counts = np.bincount(tokens_of(results), minlength=8)
    expected = torch.softmax(logits[0].double() / 0.8, 0).numpy() * number
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi square, 7 degrees of freedom: 1 in 1,000


def test_beam_search_scores_are_edited_log_probabilities(backend) -> None:
    specs = [
        SamplingSpec(temperature=0.0, top=6),
        SamplingSpec(temperature=0.0, top=4, repetition_penalty=1.7, bad_words=((9,),)),
    ]
    logits = logits_of(2)
    results = Rows(backend, specs).run(logits, wants=[Want.LOGPROBS] * 2, draws=[(), ()])
    scores = torch.log_softmax(logits.double(), 1)
    scores[1, [1, 2, 3]] *= 1.7
    scores[1, 9] = -torch.inf
    for result, row, count in zip(results, scores, (6, 4), strict=True):
        best = row.topk(count)
        assert result.samples == ()
        assert [token for token, _ in result.top] == best.indices.tolist()
        assert [value for _, value in result.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_beam_search_scores_are_those_of_transformers_processors(backend) -> None:
    from transformers import LogitsProcessorList, NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

    spec = SamplingSpec(temperature=0.0, top=VOCAB, repetition_penalty=1.3, bad_words=((9,), (3, 4)))
    logits = logits_of(1)
    processors = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(1.3), NoBadWordsLogitsProcessor([[9], [3, 4]], eos_token_id=0)]
    )
    theirs = processors(torch.tensor([[1, 2, 3]]), torch.log_softmax(logits, 1))[0]
    result = Rows(backend, [spec]).run(logits, wants=[Want.LOGPROBS], draws=[()])[0]
    assert len(result.top) == VOCAB - 2
    for token, value in result.top:
        assert value == pytest.approx(theirs[token].item(), abs=1e-6)


def test_searching_and_drawing_rows_share_a_batch(backend) -> None:
    specs = [SamplingSpec(temperature=0.0, top=3), GREEDY, SamplingSpec(logprobs=1)]
    logits = logits_of(3)
    rows = Rows(backend, specs)
    together = rows.run(logits, wants=[Want.LOGPROBS, Want.SAMPLE, Want.SAMPLE], draws=[(), (0,), (0,)])
    assert together[0].top == rows.run(logits[:1], wants=[Want.LOGPROBS], draws=[()])[0].top
    assert together[1].samples[0].token == logits[1].argmax()
    assert together[2] == rows.run(logits[2:], slots=[2])[0]


def test_a_slot_taken_again_remembers_nothing(backend) -> None:
    heavy = SamplingSpec(temperature=0.0, repetition_penalty=100.0, bad_words=((5,),), logprobs=2, prompt_logprobs=1)
    rows, logits = Rows(backend, [heavy]), logits_of(1)
    rows.run(logits)
    rows.state.release(0)
    rows.state.take(SlotInit(0, 9, "other", 0, 0, 1, (7,), GREEDY))
    assert rows.run(logits) == Rows(backend, [GREEDY]).run(logits)
    assert rows.state.prompt[0] is None
    assert rows.state.table_len[0, 0] == 0
