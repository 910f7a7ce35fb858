"""The decoder beside transformers: every family, odd shapes, every rope scaling, in every way of feeding the tokens."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import load_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_runner import PagedRunner

from octavo import kernels
from octavo.model import Decoder, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB = 384
LONG, SHORT = 90, 37


def scaled(**rope: Any) -> dict[str, Any]:
    """Scaling from a context of 32, so that most of the positions tested lie beyond it."""
    return {"max_position_embeddings": 128, "rope_parameters": {"rope_theta": 10_000.0, **rope}}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, heads of 80, no GQA": (
        "llama",
        {
            "hidden_size": 160,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": None,
            "tie_word_embeddings": True,
        },
    ),
    "llama heads of 48, GQA 3:1": ("llama", {"head_dim": 48}),
    "llama one KV head, biases": ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "llama gelu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama linear": ("llama", scaled(rope_type="linear", factor=4.0)),
    "llama llama3": (
        "llama",
        scaled(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama yarn": ("llama", scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "llama dynamic": ("llama", {**scaled(rope_type="dynamic", factor=4.0), "max_position_embeddings": 32}),
    "mistral windowed": ("mistral", {"sliding_window": 13}),
    "mistral full": ("mistral", {"sliding_window": None}),
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2 upper layers windowed": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    "qwen2 yarn": ("qwen2", scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    "qwen3 heads of 24, tied": ("qwen3", {"head_dim": 24, "tie_word_embeddings": True}),
    "qwen3 bias, linear": ("qwen3", {"attention_bias": True, **scaled(rope_type="linear", factor=2.0)}),
}

GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1_000.0},
}
CASES |= {
    "gemma2": ("gemma2", {"num_hidden_layers": 4, "sliding_window": 13}),
    "gemma2 heads of 256, one KV head": (
        "gemma2",
        {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 9},
    ),
    "gemma2 untied, biases, three layers": (
        "gemma2",
        {"num_hidden_layers": 3, "sliding_window": 20, "tie_word_embeddings": False, "attention_bias": True},
    ),
    "gemma2 uncapped": (
        "gemma2",
        {"sliding_window": 13, "attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    "gemma3": ("gemma3", {"num_hidden_layers": 7, "sliding_window": 13, "sliding_window_pattern": 6}),
    "gemma3 linear, heads of 48": (
        "gemma3",
        {"num_hidden_layers": 3, "sliding_window": 11, "head_dim": 48, "rope_parameters": GEMMA3_ROPE},
    ),
    "gemma3 capped": ("gemma3", {"sliding_window": 13, "final_logit_softcapping": 9.0}),
    "gemma3 layer types": (
        "gemma3",
        {
            "num_hidden_layers": 4,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gemma3 with vision": ("gemma3 with vision", {"num_hidden_layers": 3, "sliding_window": 13}),
}

FEATURES = {
    "llama linear": ("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
    "llama llama3": ("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
    "llama yarn": ("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
    "llama dynamic": ("rope_parameters", {"rope_type": "default", "rope_theta": 10_000.0}),
    "mistral windowed": ("sliding_window", None),
    "qwen2 upper layers windowed": ("layer_types", None),
    "llama gelu": ("hidden_act", "silu"),
    "gemma2": ("attn_logit_softcapping", None),
    "gemma2 uncapped": ("final_logit_softcapping", 9.0),
    "gemma2 untied, biases, three layers": ("query_pre_attn_scalar", 40),
    "gemma2 heads of 256, one KV head": ("sliding_window", 100),
    "gemma3": ("layer_types", ["full_attention"] * 7),
    "gemma3 linear, heads of 48": ("rope_parameters", {"full_attention": GEMMA3_ROPE["full_attention"]}),
    "gemma3 layer types": ("rope_parameters", {"sliding_attention": GEMMA3_ROPE["sliding_attention"]}),
}


@cache
def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCAB), k=count))


@torch.no_grad()
def reference_logits(folder: Path, ids: tuple[int, ...], dtype: str = "float32") -> torch.Tensor:
    """transformers' logits at every position. Past the trained context of a dynamic scaling the tokens come one at a
    time, for there its results depend on how they come."""
    model = load_reference(folder, dtype)
    config = model.config.get_text_config()
    dynamic = config.rope_parameters.get("rope_type") == "dynamic"
    first = config.max_position_embeddings if dynamic else len(ids)
    result = model(torch.tensor([ids[:first]]), use_cache=True)
    logits = [result.logits[0]]
    for token in ids[first:]:
        result = model(torch.tensor([[token]]), past_key_values=result.past_key_values, use_cache=True)
        logits.append(result.logits[0])
    return torch.cat(logits)


_references: dict[tuple[Path, int], torch.Tensor] = {}


def expected(folder: Path, count: int, seed: int = 0) -> torch.Tensor:
    key = (folder, seed * 1000 + count)
    if key not in _references:
        _references[key] = reference_logits(folder, tokens(count, seed))
    return _references[key]


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within 1e-4, and the same best token unless the reference's two best are within 1e-4."""
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    best = theirs.topk(2).values
    differ = ours.argmax(-1) != theirs.argmax(-1)
    assert bool((best[:, 0] - best[:, 1] <= 1e-4)[differ].all())


def load(folder: Path, backend: str = "reference", dtype: str = "float32", **options: Any) -> Decoder:
    return load_model(folder, dtype=dtype, kernels=kernels.load(backend), **options)


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", CASES)
def test_prefill_chunks_and_single_tokens_give_the_logits_of_transformers(
    checkpoint: Callable[..., Path], name: str, backend: str
) -> None:
    family, overrides = CASES[name]
    folder = checkpoint(family, **overrides)
    decoder = load(folder, backend)
    long, short = tokens(LONG), tokens(SHORT, 1)
    wanted = torch.cat((expected(folder, LONG), expected(folder, SHORT, 1)))

    whole = PagedRunner(decoder, block_size=16).run({"long": long, "short": short})
    assert_same(whole, wanted)

    runner = PagedRunner(decoder, block_size=4, seed=2)
    singly = [runner.run({"long": [token]}) for token in long]
    assert_same(torch.cat(singly), wanted[:LONG])

    runner, rng = PagedRunner(decoder, block_size=7, seed=3), random.Random(4)
    parts: dict[object, list[torch.Tensor]] = {"long": [], "short": []}
    left: dict[object, list[int]] = {"long": list(long), "short": list(short)}
    while any(left.values()):
        chunks: dict[object, list[int]] = {}
        for key in sorted(left, key=lambda _: rng.random()):
            size = min(rng.choice([0, 1, 1, 5, 13]), len(left[key]))
            if size:
                chunks[key], left[key] = left[key][:size], left[key][size:]
        if chunks:
            logits = runner.run(chunks).split([len(chunk) for chunk in chunks.values()])
            for key, part in zip(chunks, logits, strict=True):
                parts[key].append(part)
    assert_same(torch.cat(parts["long"] + parts["short"]), wanted)


@pytest.mark.parametrize("name", FEATURES)
def test_each_option_changes_the_logits(checkpoint: Callable[..., Path], name: str, tmp_path: Path) -> None:
    """So that the test above could not pass with the option ignored."""
    import json
    import shutil

    family, overrides = CASES[name]
    folder = checkpoint(family, **overrides)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    field, value = FEATURES[name]
    config[field] = value
    if name.startswith("qwen2"):
        config["use_sliding_window"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    without = PagedRunner(load(tmp_path)).run({0: tokens(LONG)})
    assert (without - expected(folder, LONG)).abs().max() > 0.05


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_a_narrow_checkpoint_is_computed_exactly_in_float32(checkpoint: Callable[..., Path], stored: str) -> None:
    folder = checkpoint("qwen3", dtype=stored, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same(PagedRunner(load(folder)).run({0: tokens(LONG)}), expected(folder, LONG))


def test_only_the_rows_wanted(checkpoint: Callable[..., Path], backend: str) -> None:
    folder = checkpoint("llama")
    decoder = load(folder, backend, batch_invariant=True)
    chunks = {"a": tokens(20), "b": tokens(9, 1), "c": [5]}
    every = PagedRunner(decoder).run(chunks)
    assert torch.equal(PagedRunner(decoder).run(chunks, rows=[19, 28, 29]), every[[19, 28, 29]])
    assert torch.equal(PagedRunner(decoder).run(chunks, rows=[3]), every[[3]])


def test_a_chunk_of_which_nothing_is_wanted_still_leaves_its_keys(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    runner = PagedRunner(load(folder))
    assert runner.run({0: tokens(LONG)[:-1]}, rows=[]).shape == (0, VOCAB)
    assert_same(runner.run({0: tokens(LONG)[-1:]}), expected(folder, LONG)[-1:])


def test_contexts_longer_than_any_before_extend_the_angles(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama", max_position_embeddings=4096)
    count = 1100
    logits = PagedRunner(load(folder)).run({0: tokens(count)}, rows=[0, 1023, 1024, count - 1])
    assert_same(logits, expected(folder, count)[[0, 1023, 1024, count - 1]])


@pytest.fixture(scope="module")
def invariant(checkpoint: Callable[..., Path]) -> dict[str, Decoder]:
    folder = checkpoint("qwen3", attention_bias=True, intermediate_size=200, vocab_size=VOCAB)
    return {name: load(folder, name, batch_invariant=True) for name in ("reference", "cpu")}


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_batch_invariant_rows_are_bit_equal_however_they_come(
    invariant: dict[str, Decoder], name: str, data: st.DataObject
) -> None:
    decoder = invariant[name]
    ids = tokens(60)
    alone = PagedRunner(decoder).run({0: ids})
    runner = PagedRunner(decoder, block_size=data.draw(st.sampled_from([1, 5, 16])), seed=1)
    got, at, step = [], 0, 0
    while at < len(ids):
        size = min(data.draw(st.sampled_from([1, 2, 7, 16, 33])), len(ids) - at)
        others = data.draw(st.lists(st.sampled_from([1, 3, 20]), max_size=4))
        chunks: dict[object, tuple[int, ...]] = {
            f"{step} {index}": tokens(count, index) for index, count in enumerate(others)
        }
        place = data.draw(st.integers(0, len(others)))
        ordered = list(chunks.items())
        ordered.insert(place, ("mine", ids[at : at + size]))
        before = sum(len(chunk) for _, chunk in ordered[:place])
        got.append(runner.run(dict(ordered))[before : before + size])
        for key in chunks:
            runner.free.extend(block for table in runner.blocks.pop(key) for block in table)
        at, step = at + size, step + 1
    assert torch.equal(torch.cat(got), alone)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bfloat16_is_as_near_to_the_truth_as_transformers(
    checkpoint: Callable[..., Path], family: str, backend: str
) -> None:
    windows = {"sliding_window": 30} if family.startswith("gemma") else {}
    folder = checkpoint(family, dtype="bfloat16", num_hidden_layers=4, **windows)
    truth = reference_logits(folder, tokens(200), "float64")
    theirs = (reference_logits(folder, tokens(200), "bfloat16").double() - truth).square().mean().sqrt()
    runner = PagedRunner(load(folder, backend, "bfloat16"))
    prefill = runner.run({0: tokens(200)[:150]})
    decode = [runner.run({0: [token]}) for token in tokens(200)[150:]]
    ours = (torch.cat([prefill, *decode]).double() - truth).square().mean().sqrt()
    assert ours <= 1.5 * theirs, f"ours {ours:.4f}, theirs {theirs:.4f}"


def test_float16(checkpoint: Callable[..., Path], backend: str) -> None:
    folder = checkpoint("llama", dtype="float16")
    logits = PagedRunner(load(folder, backend, "float16")).run({0: tokens(LONG)})
    assert (logits - expected(folder, LONG)).abs().max() < 0.2


def test_the_same_decoder_serves_batches_of_every_size(checkpoint: Callable[..., Path]) -> None:
    folder = checkpoint("llama")
    decoder = load(folder)
    decoder.reserve(8, 100)
    for count in (3, 90, 1, 40, 90):
        assert_same(PagedRunner(decoder).run({0: tokens(LONG)[:count]}), expected(folder, LONG)[:count])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_recorded_programs_give_what_single_calls_give(
    checkpoint: Callable[..., Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.load("cpu").PanelLinear, "available", staticmethod(lambda: True))
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    folder = checkpoint(family, dtype="bfloat16", intermediate_size=96, **shape)
    recorded, plain = (load(folder, "cpu", "bfloat16", linear_kind="panels") for _ in range(2))
    assert recorded._recordable
    plain._recordable = False
    results = []
    for decoder in (recorded, plain):
        runner = PagedRunner(decoder)
        mine = [runner.run({"a": tokens(30), "b": tokens(7, 1)}).clone()]
        mine += [runner.run({"a": [5], "b": [6], "c": tokens(3)}, rows=[0, 4]).clone() for _ in range(2)]
        mine += [runner.run({"b": [7], "d": tokens(40)}, rows=[]), runner.run({"d": tokens(200)}, rows=[199]).clone()]
        mine += [runner.run({"d": [1], "a": [2]}).clone()]  # what was asked for nothing has left its keys all the same
        mine += [runner.run({"d": [3, 4], "a": [5]}, rows=[0, 2]).clone()]
        mine += [runner.run({"b": [3], "d": [count], "a": [5]}, rows=[count % 3]).clone() for count in range(3)]
        other = PagedRunner(decoder)  # the same sizes in other memory
        mine += [other.run({"a": tokens(9), "b": tokens(150, 2)}).clone(), other.run({"a": [1], "b": [2]}).clone()]
        mine += [runner.run({"d": [6], "a": [7]}).clone()]
        results.append(mine)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert any(views.programs for views in recorded._views.values())
    assert any(views.step for views in recorded._views.values())
    assert not any(views.programs or views.step for views in plain._views.values())
