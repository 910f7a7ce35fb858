"""Sampling on the GPU, at real sizes, against the reference and float64."""

from __future__ import annotations

import math

import pytest
import torch

from octavo.executor.gpu.sampler import DeviceSampler, DrawRows
from octavo.kernels import noise, reference
from octavo.kernels.drawn import Drawn
from octavo.plan import SamplingSpec, SlotInit

triton = pytest.importorskip("octavo.kernels.triton", exc_type=ImportError)

ROWS, VOCAB = 256, 151_936


def columns(rows: int, **given: list[float]) -> tuple[torch.Tensor, ...]:
    """temperature, top_k, top_p, min_p, seeds; each value in turn."""
    kinds = {"temperature": (1.0, torch.float32), "top_k": (0, torch.int32), "top_p": (1.0, torch.float32)}
    kinds["min_p"] = (0.0, torch.float32)
    parameters = []
    for name, (default, dtype) in kinds.items():
        values = given.get(name, [default])
        parameters.append(torch.tensor([values[row % len(values)] for row in range(rows)], dtype=dtype, device="cuda"))
    return (*parameters, torch.arange(rows, device="cuda") * 7919 - 5)


def places(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """indexes, positions."""
    return torch.arange(rows, device="cuda") % 3, torch.arange(rows, device="cuda") * 11


def poisoned(rows: int) -> Drawn:
    return Drawn(
        torch.full((rows,), -9, device="cuda"),
        torch.full((rows,), math.nan, device="cuda"),
        torch.full((rows,), -9, dtype=torch.int32, device="cuda"),
    )


def scores(logits: torch.Tensor, row: int, tokens: list[int], parameters, where) -> list[float]:
    """What a draw compares, float64, of some tokens of a row."""
    temperature, seed = parameters[0][row].item(), parameters[4][row].item()
    index, position = where[0][row].item(), where[1][row].item()
    values = []
    for token in tokens:
        v = min((torch.tensor(noise.word(seed, index, position, token)).float() * 2**-32 + 2**-33).item(), 1 - 2**-24)
        values.append(logits[row, token].double().item() / temperature - math.log(-math.log1p(-v)))
    return values


def check(logits: torch.Tensor, tokens: torch.Tensor, parameters, where) -> None:
    """The reference's tokens, but where two scores are within 1e-5; a few rows at a time, for its memory."""
    for begin in range(0, len(tokens), 16):
        part = slice(begin, begin + 16)
        temperature, top_k, top_p, min_p, seeds = (column[part] for column in parameters)
        right = reference.sample(
            logits[part].float(), temperature, top_k, top_p, min_p, seeds, where[0][part], where[1][part]
        )
        for row in (tokens[part] != right).nonzero()[:, 0].tolist():
            found, best = scores(logits[part], row, [tokens[part][row].item(), right[row].item()], parameters, where)
            assert abs(found - best) <= 1e-5, (begin + row, found, best)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, ROWS])
def test_plain_draws(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(rows)
    logits = (torch.randn(rows, VOCAB, device="cuda") * 2.5).to(dtype)
    parameters, where, out = columns(rows, temperature=[0.7, 1.0, 0.0, 0.01, 3.0]), places(rows), poisoned(rows)
    assert triton.draw(logits, None, torch.arange(rows, device="cuda"), *where, *parameters, out=out) is out
    check(logits, out.tokens, parameters, where)
    assert not out.failures.any()
    for row in range(0, rows, 37):
        exact = torch.log_softmax(logits[row].double(), 0)[out.tokens[row]]
        assert abs(out.logprobs[row].double() - exact) < 2e-5


@pytest.mark.parametrize("spread", [0.5, 2.5])
def test_truncated_draws(spread: float) -> None:
    """Of the flat rows, a nucleus has more tokens than are copied out."""
    rows = 64
    torch.manual_seed(3)
    logits = (torch.randn(rows, VOCAB, device="cuda") * spread).bfloat16()
    parameters = columns(
        rows,
        temperature=[0.7, 1.0, 1.5],
        top_k=[0, 20, 0, 50, 1000],
        top_p=[0.95, 1.0, 0.6, 0.9],
        min_p=[0.0, 0.0, 0.05],
    )
    where = places(rows)
    tokens = triton.sample(logits.float(), *parameters, *where)
    assert torch.equal(tokens, triton.sample(logits, *parameters, *where)), "bfloat16 is read as the same numbers"
    temperature, top_k, top_p, min_p, _ = parameters
    wider = torch.where(top_p < 1, top_p * (1 + 2e-6), top_p)
    for begin in range(0, rows, 16):
        part = slice(begin, begin + 16)
        scaled = (logits[part].float() - logits[part].float().amax(1, keepdim=True)) / temperature[part, None]
        kept = reference.sampling.keep(scaled, top_k[part], wider[part], min_p[part] * (1 - 1e-6))
        assert kept.gather(1, tokens[part, None]).all()
    same = tokens == torch.cat(
        [
            reference.sample(logits[row : row + 1].float(), *(c[row : row + 1] for c in (*parameters, *where)))
            for row in range(rows)
        ]
    )
    assert same.float().mean() > 0.9  # a border token more or less is rarely the one that is drawn


def test_the_generators_words_give_the_same_tokens_as_on_the_cpu() -> None:
    """From equal logits the noise alone decides."""
    rows = 8
    logits, parameters, where = torch.zeros(rows, 50_000, device="cuda"), columns(rows), places(rows)
    tokens = triton.sample(logits, *parameters, *where)
    words = noise.words(*(column.cpu() for column in (parameters[4], *where)), 50_000)
    assert torch.equal(words.gather(1, tokens.cpu()[:, None])[:, 0], words.amin(1))


def test_the_special_units_logarithm_is_as_good_as_it_must_be() -> None:
    """Draws between two tokens, where the noise of both has to be right."""
    rows = 4096
    logits = torch.full((rows, 8), -1e4, device="cuda")
    logits[:, 2:4] = torch.randn(rows, 2, device="cuda")
    parameters, where = columns(rows), places(rows)
    check(logits, triton.sample(logits, *parameters, *where), parameters, where)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_log_probabilities_and_alternatives(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(33, VOCAB, device="cuda") * 3).to(dtype)
    exact = torch.log_softmax(logits.double(), 1)
    tokens = torch.randint(0, VOCAB, (33,), device="cuda")
    gathered = triton.log_softmax_gather(logits, tokens)
    torch.testing.assert_close(gathered.double(), exact.gather(1, tokens[:, None])[:, 0], rtol=0, atol=2e-5)
    for k in (1, 20, 1000):
        ids, values = triton.top_logprobs(logits, k)
        right, _ = reference.top_logprobs(logits.float(), k)
        assert torch.equal(ids, right)
        torch.testing.assert_close(values.double(), exact.gather(1, right), rtol=0, atol=2e-5)


def test_spoilt_and_padded_rows() -> None:
    logits = torch.randn(6, VOCAB, device="cuda")
    where = places(6)
    slots = torch.tensor([0, 1, -1, 3, 4, 5], device="cuda")
    parameters = columns(6, top_p=[1.0, 0.9])
    healthy = triton.draw(logits, None, slots, *where, *parameters)
    logits[1, 77_777], logits[3], logits[4, -1] = math.nan, math.inf, -math.inf
    drawn = triton.draw(logits, None, slots, *where, *parameters)
    assert drawn.failures.tolist() == [0, 1, 0, 1, 1, 0]
    assert drawn.tokens[[0, 5]].tolist() == healthy.tokens[[0, 5]].tolist()
    assert 0 <= drawn.tokens.min() <= drawn.tokens.max() < VOCAB


def test_edits() -> None:
    logits = torch.randn(5, VOCAB, device="cuda").bfloat16()
    rows = torch.tensor([1, -1, 0, 1, 0], device="cuda")
    bias = torch.randn(2, VOCAB, device="cuda")
    bias[0, 5:900] = -math.inf
    tally = torch.randint(0, 3, (2, VOCAB), dtype=torch.int32, device="cuda") * 2
    tally += (tally > 0).int()
    penalties = torch.tensor([[1.2, 0.3, 0.1], [0.9, 0.0, -0.4]], device="cuda")
    out = torch.full((5, VOCAB), math.nan, device="cuda")
    triton.edit_logits(logits, rows, bias, tally, penalties, out)
    right = reference.edit_logits(logits, rows, bias, tally, penalties, torch.empty_like(out))
    torch.testing.assert_close(out, right, rtol=1e-6, atol=1e-6)


def test_a_captured_draw_is_the_one_it_replays() -> None:
    """A plain step is captured once, and afterwards follows slots that were taken since."""
    device = torch.device("cuda")
    sampler = DeviceSampler(triton, 8, VOCAB, device)
    for slot in range(8):
        sampler.take(SlotInit(slot, slot, "r", 0, slot, 1, (1,), SamplingSpec()))
    logits = torch.randn(8, VOCAB, device=device)
    rows = DrawRows(*(torch.arange(8, device=device) for _ in range(3)))
    out = poisoned(8)
    sampler.draw(logits, rows, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sampler.draw(logits, rows, out)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler.take(SlotInit(3, 9, "s", 0, 99, 1, (1,), SamplingSpec(temperature=0.5, top_k=4)))
        sampler.flush()
        graph.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = sampler.draw(logits, rows)
    assert all(map(torch.equal, out, expected))


def test_edited_steps_give_the_hosts_tokens_without_waiting() -> None:
    device = torch.device("cuda")
    specs = [
        SamplingSpec(repetition_penalty=1.3, frequency_penalty=0.2),
        SamplingSpec(temperature=0.0, bad_words=((3, 7), (9,)), min_tokens=4, stop_ids=(2,)),
        SamplingSpec(top_k=5, allowed_token_ids=(1, 5, 9, 11), logprobs=3),
    ]
    samplers = [DeviceSampler(reference, 3, 997, torch.device("cpu")), DeviceSampler(triton, 3, 997, device)]
    for slot, spec in enumerate(specs):
        for sampler in samplers:
            sampler.take(SlotInit(slot, slot, "r", 0, slot, 2, (5, 3), spec))
    tokens = torch.tensor([3, 3, 3])
    for position in range(2, 9):
        logits = torch.randn(3, 997) * 3
        logits[1, [2, 7, 9]] = 20.0
        found = []
        for sampler, where in zip(samplers, (torch.device("cpu"), device), strict=True):
            slots, at = torch.arange(3, device=where), torch.full((3,), position, device=where)
            given, there = tokens.to(where), logits.to(where)
            rows, needs = DrawRows(slots, torch.zeros_like(slots), at), sampler.needs(range(3))
            if where.type == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            try:
                sampler.observe(given, slots, at - 1)
                drawn = sampler.run(there, rows, needs)
            finally:
                if where.type == "cuda":
                    torch.cuda.set_sync_debug_mode("default")
            found.append([column.cpu() for column in drawn])
        cpu, gpu = found
        assert torch.equal(cpu[0], gpu[0])
        assert torch.equal(cpu[2], gpu[2])
        assert torch.equal(cpu[3], gpu[3])
        torch.testing.assert_close(cpu[1], gpu[1], rtol=0, atol=1e-5)
        tokens = cpu[0]
