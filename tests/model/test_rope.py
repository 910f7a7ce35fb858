"""Rotary angles against transformers' own, to the last bit: at long positions nothing less is near enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.model.config import RopeConfig
from octavo.model.config_file import ConfigFile
from octavo.model.rope import cos_sin_table, inverse_frequencies

LENGTH = 700

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "large theta": {"rope_type": "default", "rope_theta": 1_000_000},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 500_000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0},
    "yarn with every option": {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 128,
        "rope_theta": 50_000.0,
        "beta_fast": 24,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.1,
        "truncate": False,
    },
    "yarn with attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "rope_theta": 10_000.0,
        "attention_factor": 1.3,
    },
    "yarn of one dimension": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 4,
        "rope_theta": 1e8,
    },
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
}


def read(config: dict[str, Any]) -> RopeConfig:
    return RopeConfig.read(ConfigFile(Path("config.json"), config), config.get("max_position_embeddings", 64))


def embedding(scaling: dict[str, Any], head_dim: int, max_positions: int = 64) -> Any:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=max_positions,
        rope_parameters=dict(scaling),
    )
    return LlamaRotaryEmbedding(config)


@pytest.mark.parametrize("head_dim", [16, 48, 80, 128])
@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "dynamic"])
def test_angles_are_those_of_transformers(name: str, head_dim: int) -> None:
    cos, sin = embedding(SCALINGS[name], head_dim)(torch.empty(0), torch.arange(LENGTH)[None])
    table = cos_sin_table(read({"rope_parameters": SCALINGS[name]}), head_dim, LENGTH)
    assert table.shape == (LENGTH, head_dim)
    assert table.dtype == torch.float32
    assert torch.equal(table[:, : head_dim // 2], cos[0, :, : head_dim // 2])
    assert torch.equal(table[:, head_dim // 2 :], sin[0, :, head_dim // 2 :])


@pytest.mark.parametrize("head_dim", [16, 80])
def test_dynamic_angles_are_those_of_transformers_one_token_at_a_time(head_dim: int) -> None:
    theirs = embedding(SCALINGS["dynamic"], head_dim)
    rows = [theirs(torch.empty(0), torch.tensor([[position]])) for position in range(200)]
    table = cos_sin_table(read({"rope_parameters": SCALINGS["dynamic"]}), head_dim, 200)
    # Powers of a vector and of a number may differ in their last bit, and the angle multiplies it by the position.
    torch.testing.assert_close(
        table[:, : head_dim // 2], torch.cat([cos[0, :, : head_dim // 2] for cos, _ in rows]), atol=3e-5, rtol=0
    )
    torch.testing.assert_close(
        table[:, head_dim // 2 :], torch.cat([sin[0, :, : head_dim // 2] for _, sin in rows]), atol=3e-5, rtol=0
    )
    plain = cos_sin_table(read({}), head_dim, 200)
    assert torch.equal(table[:64], plain[:64])
    assert (table[64:] - plain[64:]).abs().max() > 0.1


def test_a_longer_dynamic_table_begins_with_the_shorter() -> None:
    rope = read({"rope_parameters": SCALINGS["dynamic"]})
    assert torch.equal(cos_sin_table(rope, 32, 300)[:100], cos_sin_table(rope, 32, 100))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["linear", "llama3", "yarn"]),
    factor=st.floats(1.0, 64.0),
    theta=st.floats(100.0, 1e7),
    original=st.integers(8, 8192),
    half=st.integers(2, 64),
    low=st.floats(0.5, 4.0),
    more=st.floats(0.5, 8.0),
)
def test_frequencies_of_any_scaling(
    kind: str, factor: float, theta: float, original: int, half: int, low: float, more: float
) -> None:
    scaling: dict[str, Any] = {"rope_type": kind, "factor": factor, "rope_theta": theta}
    if kind != "linear":
        scaling["original_max_position_embeddings"] = original
    if kind == "llama3":
        scaling |= {"low_freq_factor": low, "high_freq_factor": low + more}
    theirs = embedding(scaling, 2 * half, max_positions=16_384)
    ours = read({"rope_parameters": scaling, "max_position_embeddings": 16_384})
    assert torch.equal(inverse_frequencies(ours, 2 * half), theirs.inv_freq)
    assert ours.attention_factor == theirs.attention_scaling


def test_the_older_way_of_writing_says_the_same() -> None:
    for scaling in SCALINGS.values():
        older = {key: value for key, value in scaling.items() if key not in ("rope_type", "rope_theta")}
        older["type"] = scaling["rope_type"]
        config = {"rope_theta": scaling["rope_theta"], "rope_scaling": older}
        assert read(config) == read({"rope_parameters": scaling})


def test_without_a_word_theta_is_ten_thousand() -> None:
    assert read({}) == RopeConfig(theta=10_000.0, original_positions=64)
    assert read({"rope_theta": 5e5, "rope_scaling": None}).theta == 5e5
