"""Draws and log-probabilities in Triton beside the reference."""

from __future__ import annotations

import math

import pytest
import torch
from interpreter import backwards

from octavo.kernels import noise, reference
from octavo.kernels.drawn import DrawFailure, Drawn
from octavo.kernels.triton import cutoffs, draw, greedy, log_softmax_gather, logprobs, sample, sampling, top_logprobs
from octavo.kernels.triton.draws import DrawShape

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that are meant


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and several parts of rows that are not long."""
    monkeypatch.setattr(sampling, "draw_shape", lambda number, vocab: DrawShape(64, 2, 2, 4))
    for module in (cutoffs, logprobs):
        monkeypatch.setattr(module, "BLOCK", 128)
        monkeypatch.setattr(module, "CAPACITY", 128)


class Case:
    """Rows, and parameters to draw from each with."""

    def __init__(self, rows: int, vocab: int, seed: int = 0, spread: float = 3.0, **parameters) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(rows, vocab, generator=self.generator) * spread
        self.rows = rows
        self.temperature = self.column(parameters.get("temperature", 1.0), torch.float32)
        self.top_k = self.column(parameters.get("top_k", 0), torch.int32)
        self.top_p = self.column(parameters.get("top_p", 1.0), torch.float32)
        self.min_p = self.column(parameters.get("min_p", 0.0), torch.float32)
        self.seeds = torch.randint(-(2**63), 2**63 - 1, (rows,), generator=self.generator)
        self.indexes = torch.randint(0, 9, (rows,), generator=self.generator)
        self.positions = torch.randint(0, 2**40, (rows,), generator=self.generator)

    def column(self, values: float | list[float], dtype: torch.dtype) -> torch.Tensor:
        given = values if isinstance(values, list) else [values]
        return torch.tensor([given[row % len(given)] for row in range(self.rows)], dtype=dtype)

    @property
    def parameters(self) -> tuple[torch.Tensor, ...]:
        return self.temperature, self.top_k, self.top_p, self.min_p, self.seeds

    @property
    def call(self) -> tuple[torch.Tensor, ...]:
        return (self.logits, *self.parameters, self.indexes, self.positions)

    def scores(self) -> torch.Tensor:
        """What a draw is the arg-max of, float64 [rows, vocab]."""
        greedy = (self.temperature == 0)[:, None]
        shifted = self.logits - self.logits.amax(1, keepdim=True)
        scaled = shifted / torch.where(greedy[:, 0], 1.0, self.temperature)[:, None]
        kept = reference.sampling.keep(scaled, self.top_k, self.top_p, self.min_p)
        words = noise.words(self.seeds, self.indexes, self.positions, self.logits.shape[1])
        v = (words.to(torch.float32) * 2.0**-32 + 2.0**-33).clamp(max=noise.UNIFORM_MAX).double()
        exact = shifted.double() / torch.where(greedy[:, 0], 1.0, self.temperature).double()[:, None]
        perturbed = (exact - torch.log(-torch.log1p(-v))).masked_fill(~kept, -math.inf)
        return torch.where(greedy, self.logits.double(), perturbed)

    def check(self, tokens: torch.Tensor) -> None:
        """The tokens are the reference's; where its two best scores are within 1e-5, one of those."""
        expected = reference.sample(*self.call)
        best = self.scores().topk(min(2, self.logits.shape[1]))
        for row, (token, right) in enumerate(zip(tokens.tolist(), expected.tolist(), strict=True)):
            if token != right:
                values = best.values[row]
                assert self.temperature[row] > 0
                assert values[0] - values[1] <= 1e-5
                assert {token, right} == set(best.indices[row].tolist())


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("vocab", [3, 128, 330])
def test_plain_draws_are_the_references(vocab: int) -> None:
    for seed, spread in enumerate((0.01, 3.0)):
        case = Case(6, vocab, seed, spread, temperature=[1.0, 0.0, 0.3, 0.01, 5.0, 100.0])
        with backwards():
            case.check(sample(*case.call))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("spread", "rounded"), [(0.3, False), (4.0, True)])
def test_truncated_draws_are_the_references(spread: float, rounded: bool) -> None:
    case = Case(
        8, 301, 5, spread, temperature=[0.8, 1.7],
        top_k=[0, 5, 0, 40, 0, 300, 1, 200],
        top_p=[0.9, 1.0, 1.0, 0.8, 0.5, 0.99, 0.6, 1e-6],
        min_p=[0.0, 0.0, 0.1, 0.0, 0.05, 0.0, 0.2, 0.0],
    )  # fmt: skip
    if rounded:  # many ties, of which the lower ids are kept
        case.logits = (case.logits / spread * 2).round() / 2
    case.check(sample(*case.call))


@pytest.mark.usefixtures("small_blocks")
def test_every_token_that_is_kept_is_drawn_sooner_or_later() -> None:
    case = Case(4, 40, 4, 1.0, temperature=3.0, top_k=[4, 0, 17, 0], top_p=[1.0, 0.15, 0.4, 1.0], min_p=[0, 0, 0, 0.75])
    logits = case.logits.round()
    kept = reference.sampling.keep((logits - logits.amax(1, keepdim=True)) / 3, case.top_k, case.top_p, case.min_p)
    assert kept.sum(1).min() > 1
    sources, indexes = torch.arange(4).repeat_interleave(18), torch.arange(18).repeat(4)
    drawn = draw(logits, sources, sources, indexes, torch.zeros(72, dtype=torch.int64), *case.parameters)
    for row in range(4):
        assert set(drawn.tokens[sources == row].tolist()) == set(kept[row].nonzero()[:, 0].tolist())


def test_a_row_of_a_real_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "draw_shape", lambda number, vocab: DrawShape(16_384, 4, 2, 4))
    monkeypatch.setattr(cutoffs, "BLOCK", 32_768)
    case = Case(2, 151_936, 1, 2.5, temperature=[0.7, 0.6], top_p=[1.0, 0.95])
    logits = case.logits.bfloat16()
    case.logits = logits.float()
    drawn = draw(logits, None, None, case.indexes, case.positions, *case.parameters)
    case.check(drawn.tokens)
    expected = torch.log_softmax(case.logits.double(), 1).gather(1, drawn.tokens[:, None])[:, 0]
    torch.testing.assert_close(drawn.logprobs.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_draws_by_slot_from_any_row_into_given_memory(dtype: torch.dtype) -> None:
    case = Case(3, 150, 2, temperature=[0.0, 1.0, 0.5], top_k=[0, 0, 4])
    logits = torch.cat((torch.full((3, 7), math.nan), case.logits), 1).to(dtype)[:, 7:]  # strided
    slots = torch.tensor([2, 0, -1, 1, 2])
    sources = torch.tensor([1, 0, 99, 2, 0])
    indexes, positions = torch.arange(5), torch.arange(5) + 3
    out = Drawn(torch.full((5,), -7), torch.full((5,), math.nan), torch.full((5,), -7, dtype=torch.int32))
    assert draw(logits, sources, slots, indexes, positions, *case.parameters, out=out) is out
    real = [0, 1, 3, 4]
    expected = reference.draw(logits, sources[real], slots[real], indexes[real], positions[real], *case.parameters)
    assert out.tokens[real].tolist() == expected.tokens.tolist()
    torch.testing.assert_close(out.logprobs[real], expected.logprobs, rtol=0, atol=1e-5)
    assert out.failures.tolist() == [0] * 5
    assert out.tokens[2] == 0


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("parameters", [{}, {"temperature": [0.0, 1.0], "top_p": 0.7, "min_p": 0.01}])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_spoilt_row_fails_and_spoils_no_other(parameters: dict, poison: float) -> None:
    case = Case(4, 130, 6, **parameters)
    call = (None, None, case.indexes, case.positions, *case.parameters)
    healthy = draw(case.logits, *call)
    case.logits[1, 70] = poison
    case.logits[2] = poison
    for masked in (False, True):
        drawn = draw(case.logits, *call, masked=masked)
        expected = reference.draw(case.logits, None, torch.arange(4), *call[2:], masked=masked)
        assert drawn.failures.tolist() == expected.failures.tolist()
        assert (drawn.failures[2] == DrawFailure.NO_TOKEN_LEFT) == (masked and poison == -math.inf)
        assert drawn.tokens[::3].tolist() == healthy.tokens[::3].tolist()
        assert 0 <= drawn.tokens.min() <= drawn.tokens.max() < 130
    if poison == -math.inf:
        assert drawn.tokens[1] == reference.sample(*case.call)[1]


@pytest.mark.usefixtures("small_blocks")
def test_only_tokens_that_are_not_masked_are_drawn() -> None:
    case = Case(4, 260, 8, temperature=[1.0, 0.0, 0.01, 3.0], top_k=[0, 0, 0, 5])
    case.logits[:, :140] = -math.inf
    case.logits[:, 141::2] = -math.inf
    case.check(sample(*case.call))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probabilities_and_alternatives(dtype: torch.dtype) -> None:
    logits = (Case(3, 211, 7).logits * 2).round().to(dtype) / 2
    logits[1, 5:40] = -0.0  # equal to 0
    logits[2, 30] = 1e4
    tokens = torch.tensor([0, 210, 30])
    exact = torch.log_softmax(logits.double(), 1)
    torch.testing.assert_close(
        log_softmax_gather(logits, tokens).double(), exact.gather(1, tokens[:, None])[:, 0], rtol=1e-6, atol=1e-5
    )
    assert log_softmax_gather(logits, torch.tensor([-1, 211, 0])).isnan().tolist() == [True, True, False]
    for k in (1, 20):
        ids, values = top_logprobs(logits, k)
        right, _ = reference.top_logprobs(logits.float(), k)
        assert torch.equal(ids, right)
        torch.testing.assert_close(values.double(), exact.gather(1, right), rtol=1e-6, atol=1e-5)
    for k in (0, 212):
        with pytest.raises(ValueError, match="between 1 and the vocabulary's 211"):
            top_logprobs(logits, k)


def test_so_many_alternatives_that_they_are_sorted() -> None:
    logits = Case(1, 2000, 9).logits
    ids, _ = top_logprobs(logits, 1100)
    assert torch.equal(ids, reference.top_logprobs(logits, 1100)[0])


def test_nothing_to_do() -> None:
    case = Case(0, 50)
    assert sample(*case.call).shape == (0,)
    assert log_softmax_gather(case.logits, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    assert top_logprobs(case.logits, 3)[0].shape == (0, 3)


def test_greedy_takes_the_first_of_the_largest_and_names_rows_that_are_not_finite() -> None:
    torch.manual_seed(3)
    logits = torch.randn(5, 300)
    logits[1, 7] = logits[1, 290] = 9.0
    logits[2, 4] = math.nan
    logits[3, 299] = -math.inf
    logits[4, 0] = math.inf
    assert torch.equal(greedy(logits), reference.greedy(logits))
    assert greedy(logits).tolist()[2:] == [-1, -1, -1]
    assert greedy(logits[:0]).shape == (0,)


def test_a_row_does_not_depend_on_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(3, 900, 2, temperature=[1.0, 0.05, 0.0])
    found = []
    for parts in (1, 3):
        shape = DrawShape(64, 2, parts, 4)
        monkeypatch.setattr(sampling, "draw_shape", lambda number, vocab, shape=shape: shape)
        found.append(draw(case.logits, None, None, case.indexes, case.positions, *case.parameters))
    assert all(map(torch.equal, *found))
