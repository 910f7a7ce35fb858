"""What the number of guesses knows of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo import EngineConfig, LLMEngine, SamplingParams
from octavo.executor.factory import create_executor
from octavo.executor.step_costs import relative
from octavo.plan import ModelFacts


def facts(folder: Path, **keywords: object) -> ModelFacts:
    settings = {"dtype": "float32", "kernels": "reference", "block_size": 4, "num_blocks": 40, "num_threads": 1}
    return create_executor(EngineConfig(model=str(folder), **(settings | keywords)), folder).facts  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({}, 0),
        ({"speculative": "ngram", "max_num_seqs": 3}, 5),  # 1, 2, 4, 8 and 16 rows
        ({"speculative": "ngram", "speculative_tokens": 3, "max_num_seqs": 32}, 6),
        ({"speculative": "ngram", "row_cost": 0.1}, 0),
        ({"speculative": "ngram", "num_blocks": 2}, 3),  # four tokens of context and four more fill the memory
        ({"speculative": "ngram", "num_blocks": 1, "max_model_len": 2}, 0),  # no room for two
    ],
)
def test_it_is_measured_where_it_matters(tiny_llama: Path, settings: dict[str, object], number: int) -> None:
    found = facts(tiny_llama, **settings)
    assert len(found.step_costs) == number
    assert any("rows takes" in note for note in found.notes) is (number > 0)
    assert list(found.step_costs) == sorted(found.step_costs)


def test_what_a_busy_machine_measures_is_brought_to_reason() -> None:
    assert relative([2.0, 1.0, 9.0, 3.0, 100.0, 90.0]) == (1.0, 1.0, 1.5, 1.5, 3.0, 6.0)


def test_measuring_leaves_nothing_behind(tiny_llama: Path) -> None:
    outputs = []
    for speculative in (None, "ngram"):
        config = EngineConfig(
            model=str(tiny_llama), dtype="float32", block_size=4, num_blocks=60, num_threads=1, speculative=speculative,
            batch_invariant=True,
        )  # fmt: skip
        with LLMEngine(config) as engine:
            assert engine.memory_snapshot().num_used == 0
            outputs.append(engine.generate([[5, 6, 7, 8] * 5], SamplingParams(temperature=0, max_tokens=30))[0].text)
    assert outputs[0] == outputs[1]
