"""Draws and log-probabilities of both backends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_case import BACKENDS, INTERPRETED, backend, small

from octavo.kernels import noise
from octavo.kernels.reference.sampling import keep

EXAMPLES = 15 if INTERPRETED else 150


def kept_by_sorting(logits: list[float], temperature: float, k: int, p: float, min_p: float) -> set[int]:
    """The definition, in Python: sort, cut at k, renormalise, cut at p, drop the unlikely."""
    top = max(logits)
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    weights = [math.exp((logits[token] - top) / temperature) for token in order]
    count = min(k, len(order)) if k > 0 else len(order)
    total = sum(weights[:count])
    if p < 1:
        reached = 0.0
        for rank in range(count):
            reached += weights[rank]
            if reached >= p * total:
                count = rank + 1
                break
    return {token for token, weight in zip(order[:count], weights, strict=False) if weight >= min_p * weights[0]}


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[float], float, int, float, float]:
    # halves, so that there are ties; probabilities away from borders that rounding decides
    size = draw(st.integers(1, 90))
    logits = [x / 2 for x in draw(st.lists(st.integers(-12, 12), min_size=size, max_size=size))]
    temperature = draw(st.sampled_from([0.5, 1.0, 1.7]))
    k = draw(st.one_of(st.just(0), st.integers(1, size + 3)))
    p = draw(st.one_of(st.just(1.0), st.floats(0.01, 0.99)))
    min_p = draw(st.one_of(st.just(0.0), st.floats(0.001, 0.9)))
    return logits, temperature, k, p, min_p


def near_a_border(logits: list[float], temperature: float, k: int, p: float, min_p: float) -> bool:
    answers = {
        frozenset(kept_by_sorting(logits, temperature, k, min(1.0, p * a) if p < 1 else p, min_p * b))
        for a in (1 - 1e-5, 1 + 1e-5)
        for b in (1 - 1e-5, 1 + 1e-5)
    }
    return len(answers) > 1


def arguments(temperature: float, k: int, p: float, min_p: float, seeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
    count = len(seeds)
    return (
        torch.full((count,), temperature),
        torch.full((count,), k, dtype=torch.int32),
        torch.full((count,), p),
        torch.full((count,), min_p),
        seeds,
        torch.zeros(count, dtype=torch.int64),
        torch.arange(count),
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(row=rows())
def test_the_reference_keeps_what_sorting_keeps(row: tuple) -> None:
    if near_a_border(*row):
        return
    logits, temperature, k, p, min_p = row
    scaled = ((torch.tensor([logits]) - max(logits)) / temperature).float()
    mask = keep(scaled, torch.tensor([k]), torch.tensor([p]), torch.tensor([min_p]))[0]
    assert set(mask.nonzero()[:, 0].tolist()) == kept_by_sorting(*row)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=EXAMPLES, deadline=None)
@given(row=rows(), seed=st.integers(-(2**63), 2**63 - 1))
def test_a_draw_is_the_best_of_what_is_kept(name: str, row: tuple, seed: int) -> None:
    if near_a_border(*row):
        return
    logits, temperature, k, p, min_p = row
    kept = kept_by_sorting(*row)
    draws = 8 if INTERPRETED else 32
    call = arguments(temperature, k, p, min_p, torch.full((draws,), seed))
    tokens = backend(name).sample(torch.tensor([logits]).repeat(draws, 1), *call).tolist()
    for position, token in enumerate(tokens):
        assert token in kept
        values = {
            other: (logits[other] - max(logits)) / temperature
            + noise.gumbel(torch.tensor(noise.word(seed, 0, position, other))).item()
            for other in kept
        }
        assert values[token] >= max(values.values()) - 1e-5


@pytest.mark.parametrize("vocab", [3, 64, 65, 200] if INTERPRETED else [3, 64, 65, 1000, 4096, 50001])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
@pytest.mark.parametrize(
    ("k", "p", "min_p"),
    [
        (0, 1.0, 0.0),
        (1, 1.0, 0.0),
        (5, 1.0, 0.0),
        (400, 0.9, 0.0),
        (0, 0.5, 0.0),
        (0, 0.97, 0.0),
        (0, 1e-6, 0.0),
        (0, 1.0, 0.1),
    ],
)
def test_both_backends_draw_the_same_tokens(vocab: int, spread: float, k: int, p: float, min_p: float) -> None:
    torch.manual_seed(vocab)
    count = small(24)
    logits = torch.randn(count, vocab) * spread
    logits[:, ::7] = -math.inf
    logits[:, vocab // 2] = 0.0
    call = arguments(0.9, k, p, min_p, torch.arange(count))
    assert torch.equal(backend("cpu").sample(logits, *call), backend("reference").sample(logits, *call))


@pytest.mark.parametrize("name", BACKENDS)
def test_many_equal_logits_are_kept_by_id(name: str) -> None:
    logits = torch.zeros(40, small(5000))
    call = arguments(1.0, 3, 1.0, 0.0, torch.arange(40))
    assert set(backend(name).sample(logits, *call).tolist()) == {0, 1, 2}
    call = arguments(1.0, 0, 3.5 / logits.shape[1], 0.0, torch.arange(40))
    assert set(backend(name).sample(logits, *call).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 15, 16, 17, 100])
def test_greedy_is_the_first_of_equals(name: str, vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = torch.randn(20, vocab).round()
    tokens = backend(name).sample(logits, *arguments(0.0, 0, 1.0, 0.0, torch.arange(20)))
    assert tokens.tolist() == [row.index(max(row)) for row in logits.tolist()]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 15, 64, 1000] if INTERPRETED else [1, 15, 64, 10_001, 70_003])
@pytest.mark.usefixtures("two_threads")
def test_the_likeliest_of_a_row_or_none_where_it_is_not_finite(name: str, vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for rows in (1, 3, 9):
        logits = torch.randn(rows, vocab, generator=generator).round(decimals=1)
        expected = logits.argmax(1)
        assert torch.equal(backend(name).greedy(logits), expected)
        for poison in (math.nan, math.inf, -math.inf):
            spoilt = logits.clone()
            spoilt[rows // 2, vocab // 3] = poison
            expected[rows // 2] = -1
            assert torch.equal(backend(name).greedy(spoilt), expected)
    assert backend(name).greedy(torch.empty(0, vocab)).shape == (0,)
    large = torch.full((1, vocab), 3e38)  # a sum of them is infinite
    assert backend(name).greedy(large).tolist() == [0]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6])
def test_extreme_temperatures(name: str, temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, -2.0, 2.9]] * 50)
    tokens = backend(name).sample(logits, *arguments(temperature, 0, 1.0, 0.0, torch.arange(50)))
    assert set(tokens.tolist()) == ({1} if temperature < 1 else {0, 1, 2, 3})


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_of_all_kinds_share_a_batch_without_touching_each_other(name: str) -> None:
    torch.manual_seed(0)
    count, vocab = 12, small(3000)
    logits = torch.randn(count, vocab)
    call = (
        torch.tensor([0.0, 1.0, 0.5] * 4),
        torch.tensor([0, 0, 5, 50] * 3, dtype=torch.int32),
        torch.tensor([1.0, 0.9] * 6),
        torch.tensor([0.0] * 6 + [0.05] * 6),
        torch.arange(count) * 31 - 7,
        torch.arange(count) % 3,
        torch.arange(count) * 1000 + 2**33,
    )
    together = backend(name).sample(logits, *call)
    for row in range(count):
        alone = backend(name).sample(logits[row : row + 1], *(x[row : row + 1] for x in call))
        assert alone.item() == together[row].item()


@pytest.mark.skipif(INTERPRETED, reason="thousands of draws")
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("k", "p"), [(0, 1.0), (6, 1.0), (0, 0.8)])
def test_draws_follow_the_distribution(name: str, k: int, p: float) -> None:
    draws, vocab, temperature = 40000, 12, 0.7
    torch.manual_seed(1)
    logits = torch.randn(vocab)
    kept = sorted(kept_by_sorting(logits.tolist(), temperature, k, p, 0.0))
    expected = (logits[kept].double() / temperature).softmax(-1) * draws
    tokens = backend(name).sample(logits.repeat(draws, 1), *arguments(temperature, k, p, 0.0, torch.full((draws,), 99)))
    seen = torch.bincount(tokens, minlength=vocab)[kept].double()
    assert seen.sum() == draws
    statistic = ((seen - expected) ** 2 / expected).sum().item()
    freedom = len(kept) - 1
    # chi square by Wilson and Hilferty's approximation: one in a thousand lies above
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocab", [1, 16, 63, 1000])
def test_log_probabilities(name: str, vocab: int) -> None:
    torch.manual_seed(vocab)
    logits = (torch.randn(9, vocab) * 5).round(decimals=1)
    tokens = torch.randint(0, vocab, (9,))
    expected = logits.double().log_softmax(-1)
    gathered = backend(name).log_softmax_gather(logits, tokens)
    assert gathered.dtype == torch.float32
    assert torch.allclose(gathered.double(), expected.gather(1, tokens[:, None])[:, 0], atol=1e-5)
    for k in {1, min(5, vocab), vocab}:
        ids, values = backend(name).top_logprobs(logits, k)
        ranked = [sorted(range(vocab), key=lambda t: (-row[t], t))[:k] for row in logits.tolist()]
        assert ids.tolist() == ranked
        assert torch.allclose(values.double(), expected.gather(1, ids), atol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("k", [0, 6])
def test_top_logprobs_refuses_a_k_out_of_range(name: str, k: int) -> None:
    with pytest.raises(ValueError, match="k="):
        backend(name).top_logprobs(torch.zeros(2, 5), k)


def test_rows_may_be_strided() -> None:
    wide = torch.randn(6, 200)
    logits = wide[:, 20:150]
    call = arguments(1.0, 10, 0.9, 0.0, torch.arange(6))
    assert torch.equal(backend("cpu").sample(logits, *call), backend("cpu").sample(logits.contiguous(), *call))


@pytest.mark.usefixtures("two_threads")
def test_threads_change_no_draw() -> None:
    logits = torch.randn(small(64), small(2000))
    call = arguments(1.0, 0, 0.9, 0.0, torch.arange(len(logits)))
    two = backend("cpu").sample(logits, *call)
    torch.set_num_threads(1)
    assert torch.equal(two, backend("cpu").sample(logits, *call))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(("k", "p", "min_p"), [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.5, 0.0), (90, 0.5, 0.1)])
def test_a_spoilt_row_ends_nothing_and_spoils_no_other(
    name: str, poison: float, everywhere: bool, k: int, p: float, min_p: float
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 100)
    call = arguments(1.0, k, p, min_p, torch.arange(3))
    expected = backend(name).sample(logits, *call)
    logits[1, 0 if everywhere else 40 :] = poison
    tokens = backend(name).sample(logits, *call)
    assert 0 <= tokens[1] < 100
    assert tokens[::2].tolist() == expected[::2].tolist()
    ids, _ = backend(name).top_logprobs(logits, 70)
    assert ids.min() >= 0
    assert ids.max() < 100
    assert backend(name).log_softmax_gather(logits, torch.tensor([1, 2, 3]))[::2].isfinite().all()


def test_the_log_probability_of_no_token_is_nan() -> None:
    assert backend("cpu").log_softmax_gather(torch.zeros(3, 8), torch.tensor([-1, 8, 7])).isnan().tolist() == [
        True,
        True,
        False,
    ]
