"""The GPU's executor beside the CPU's, the same kernels under both: every token and log-probability has the same bits,
however the requests came by them, with plans in flight and without."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_case import assert_clean
from executor.gpu.soak import everything, soak
from executor.gpu.stand_in import StandIn, StandInStream
from executor.gpu.stand_in_engine import settings_of, stand_in_engine

from octavo import EngineConfig, LLMEngine, SamplingParams

VOCAB, NEW = 384, 12
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 10},
    "gemma2": {"sliding_window": 10},
    "gemma3": {"num_hidden_layers": 3, "sliding_window": 10, "sliding_window_pattern": 3},
    "qwen3": {"head_dim": 24, "tie_word_embeddings": True},
}
PROMPTS = [random.Random(length).choices(range(2, VOCAB), k=length) for length in (19, 3, 33, 1, 8)]

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 1.1, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "seed": 5},
    "siblings": {"temperature": 1.0, "seed": 2, "n": 3, "best_of": 4},
    "beams": {"beam_width": 3, "n": 2},
    "beams with penalties": {"beam_width": 2, "repetition_penalty": 1.4},
    "log-probabilities": {"temperature": 0.8, "seed": 1, "logprobs": 4, "prompt_logprobs": 2},
    "penalties": {"temperature": 0.9, "seed": 1, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    "edits": {
        "temperature": 0.0,
        "frequency_penalty": 0.7,
        "logit_bias": {9: 5.0, 11: -3.0},
        "min_tokens": 6,
        "stop_token_ids": [*range(2, 120)],
        "logprobs": 0,
        "prompt_logprobs": 0,
    },
    "stops": {"temperature": 1.0, "seed": 3, "stop_token_ids": [*range(2, 40)], "stop": ["e"]},
}


def run(engine: LLMEngine, params: SamplingParams | list[SamplingParams]) -> list[Any]:
    with engine:
        outputs = [everything(output) for output in engine.generate(PROMPTS, params)]
        assert_clean(engine)
    return outputs


@pytest.fixture(scope="module")
def folder(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("llama")


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_request(folder: Path, kind: str, depth: int) -> None:
    config = EngineConfig(model=str(folder), **settings_of(depth=depth))
    params = SamplingParams(**({"max_tokens": NEW} | KINDS[kind]))
    assert run(stand_in_engine(config), params) == run(LLMEngine(config), params)


@pytest.mark.parametrize("depth", [0, 1])
def test_all_kinds_side_by_side(folder: Path, depth: int) -> None:
    """What one row wants does nothing to another's."""
    config = EngineConfig(model=str(folder), **settings_of(depth=depth, max_num_batched_tokens=11))
    kinds = [KINDS[name] for name in ("greedy", "edits", "penalties", "log-probabilities", "sampled")]
    params = [SamplingParams(max_tokens=NEW + 3 * i, **kind) for i, kind in enumerate(kinds)]
    assert run(stand_in_engine(config), params) == run(LLMEngine(config), params)


@pytest.mark.parametrize("family", MODELS)
def test_every_kind_of_model(checkpoint: Callable[..., Path], family: str) -> None:
    config = EngineConfig(model=str(checkpoint(family, **MODELS[family])), **settings_of(depth=1))
    params = SamplingParams(temperature=0.9, seed=4, max_tokens=30, logprobs=1)
    assert run(stand_in_engine(config), params) == run(LLMEngine(config), params)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_drafts(folder: Path, depth: int, penalty: float) -> None:
    """Guesses are verified; where what comes depends on what came before, one at a time."""
    few = [*range(40, 46)]  # so few different tokens that guesses come true
    params = SamplingParams(
        temperature=0.8, seed=7, max_tokens=60, logprobs=2, allowed_token_ids=few, repetition_penalty=penalty
    )
    guesses = {"speculative": "ngram", "ngram_min": 1, "row_cost": 0.0}
    engine = stand_in_engine(EngineConfig(model=str(folder), **settings_of(depth=depth, **guesses)))
    found, stats = run(engine, params), engine.stats()
    assert stats.num_drafted_tokens > 5
    assert (stats.num_accepted_tokens > 5) == (penalty == 1.0)
    assert found == run(LLMEngine(EngineConfig(model=str(folder), **settings_of())), params)


@pytest.fixture(scope="module")
def soak_reference(folder: Path) -> Iterator[LLMEngine]:
    with LLMEngine(EngineConfig(model=str(folder), **settings_of(max_model_len=120))) as engine:
        yield engine


@pytest.mark.parametrize("seed", range(4))
def test_soak(folder: Path, soak_reference: LLMEngine, seed: int) -> None:
    def build(**settings: Any) -> LLMEngine:
        return stand_in_engine(EngineConfig(model=str(folder), **settings_of(**settings)))

    kinds = [kind for kind in KINDS.values() if "best_of" not in kind]
    soak(build, soak_reference, seed, [*range(2, VOCAB)], kinds)


def test_a_step_waits_for_nothing_but_its_collection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a plan in flight the host waits once a step: for the results of the step before."""
    device = StandIn()
    config = EngineConfig(model=str(folder), **settings_of(depth=1))
    waits, inside = 0, False
    run_until = StandInStream.run_until

    def counted(stream: StandInStream, ticket: int) -> None:
        nonlocal waits, inside
        outermost = not inside  # what one stream waits for on another's behalf costs the host nothing
        inside = True
        waits += outermost and stream.done < ticket
        run_until(stream, ticket)
        inside = inside and not outermost

    with stand_in_engine(config, device) as engine:
        for prompt in PROMPTS:
            engine.add_request(prompt, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))
        for _ in range(4):
            engine.step()
        monkeypatch.setattr(StandInStream, "run_until", counted)
        for step in range(1, 21):
            engine.step()
            assert waits == step


def test_graphs_change_nothing(folder: Path) -> None:
    """Batches of 1 to 5 rows, filled up to the sizes of graphs, and as they are."""
    params = [SamplingParams(temperature=0.9, seed=i, max_tokens=8 + 5 * i, ignore_eos=True) for i in range(5)]
    found = []
    for graphs in (True, False):
        device = StandIn()
        engine = stand_in_engine(EngineConfig(model=str(folder), **settings_of(depth=1, cuda_graphs=graphs)), device)
        tried = len(device.graphs)
        found.append(run(engine, params))
        assert (len(device.graphs) - tried == 4) == graphs  # for 1, 2, 4 and 8 rows
        assert all(graph.replays > 2 for graph in device.graphs[tried:])
    assert found[0] == found[1]
