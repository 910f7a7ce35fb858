"""Flags against the objects that they build."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from octavo.cli.options import ENGINE, SAMPLING, engine_options, sampling_options
from octavo.config import EngineConfig
from octavo.errors import SamplingParamsError
from octavo.request import SamplingParams


def built(*arguments: str, env: dict[str, str] | None = None, **defaults: Any) -> tuple[EngineConfig, SamplingParams]:
    """What a command with all flags gets for these arguments."""
    seen: list[Any] = []
    app = typer.Typer()

    @app.command()
    @engine_options()
    @sampling_options(**defaults)
    def command(config: EngineConfig, params: SamplingParams) -> None:
        seen.append((config, params))

    result = CliRunner().invoke(app, list(arguments), env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    config, params = seen[0]
    return config, params


def test_every_field_has_a_flag() -> None:
    assert set(ENGINE) == {item.name for item in fields(EngineConfig)}
    assert set(SAMPLING) == {item.name for item in fields(SamplingParams)}


def test_without_flags_the_defaults_are_the_objects_own() -> None:
    assert built() == (EngineConfig(), SamplingParams())
    assert built(max_tokens=5)[1] == SamplingParams(max_tokens=5)
    assert built("--max-tokens", "9", max_tokens=5)[1] == SamplingParams(max_tokens=9)


CONFIGURATION: dict[str, Any] = {
    "model": "a/b", "revision": "main", "tokenizer": "c", "dtype": "float32", "device": "cpu", "kernels": "reference",
    "kv_cache_dtype": "int8", "linear_kind": "plain", "quantization": "int8",
    "block_size": 8, "num_blocks": 99, "memory_utilization": 0.25, "max_num_seqs": 3, "max_num_batched_tokens": 64,
    "max_model_len": 77, "policy": "priority", "ageing_seconds": 5.5, "batching": "static", "prefix_caching": False,
    "eviction": "lfu", "depth": 1, "batch_invariant": True, "num_threads": 2, "seed": 11,
    "swap_space": 0.5, "host_cache": False, "preemption": "swap", "link_bandwidth": 2e9, "compute_speed": 3e11,
    "speculative": "ngram", "speculative_tokens": 5, "ngram_min": 1, "ngram_max": 3, "row_cost": 0.25,
    "cuda_graphs": False, "gpu_memory_utilization": 0.75,
    "victims": "lru", "retained_requests": 5,
}  # fmt: skip


def test_every_engine_flag_reaches_its_field() -> None:
    assert set(CONFIGURATION) == set(ENGINE)
    arguments = []
    for name, value in CONFIGURATION.items():
        flag = "--engine-seed" if name == "seed" else "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else f"--no-{flag[2:]}")
        else:
            arguments += [flag, str(value)]
    config, params = built(*arguments)
    assert config == EngineConfig(**CONFIGURATION)
    assert params == SamplingParams()
    assert built("--swap-space", "1", "--host-cache")[0] == EngineConfig(swap_space=1.0, host_cache=True)


def test_every_sampling_flag_reaches_its_field() -> None:
    arguments = (
        "--n 2 --best-of 3 --temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 "
        "--presence-penalty 0.3 --frequency-penalty 0.4 --logit-bias 5=-2.5 --logit-bias 6=1 --allowed-token-id 5 "
        "--allowed-token-id 6 --bad-word ox --max-tokens 20 --min-tokens 2 --stop a --stop bc "
        "--include-stop-str-in-output --stop-token-id 9 --ignore-eos --seed 4 --logprobs 1 --prompt-logprobs 0 "
        "--no-skip-special-tokens"
    )
    assert built(*arguments.split())[1] == SamplingParams(
        n=2, best_of=3, temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=0.4, logit_bias={5: -2.5, 6: 1.0}, allowed_token_ids=[5, 6], bad_words=["ox"], max_tokens=20,
        min_tokens=2, stop=["a", "bc"], include_stop_str_in_output=True, stop_token_ids=[9], ignore_eos=True, seed=4,
        logprobs=1, prompt_logprobs=0, skip_special_tokens=False,
    )  # fmt: skip
    beams = built("--beam-width", "3", "--length-penalty", "0.5", "--early-stopping")[1]
    assert beams == SamplingParams(beam_width=3, length_penalty=0.5, early_stopping=True)


def test_flags_come_from_the_environment_too() -> None:
    config, params = built(env={"OCTAVO_BLOCK_SIZE": "32", "OCTAVO_TEMPERATURE": "0", "OCTAVO_SEED": "5"})
    assert config == EngineConfig(block_size=32)
    assert params == SamplingParams(temperature=0.0, seed=5)
    assert built("--block-size", "8", env={"OCTAVO_BLOCK_SIZE": "32"})[0] == EngineConfig(block_size=8)


@pytest.mark.parametrize("pair", ["5", "a=1", "5=", "5=x", "=1"])
def test_a_malformed_bias_is_named(pair: str) -> None:
    with pytest.raises(SamplingParamsError, match="must be ID=BIAS"):
        built("--logit-bias", pair)
