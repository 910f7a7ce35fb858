"""GGUF files stand for what llama.cpp's own package reads in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_files import random_blocks, write_gguf
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from octavo.errors import UnsupportedModelError
from octavo.hub import resolve_model
from octavo.model.formats import open_weights
from octavo.model.formats.ggml_blocks import BLOCKS
from octavo.model.quantized import QuantizedWeight

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_stand_for_what_the_package_says(kind: str) -> None:
    of, block = Kind[kind], BLOCKS[kind]
    assert gguf.GGML_QUANT_SIZES[of] == (block.numbers, block.nbytes)
    data = random_blocks(5, 512, of)
    want = torch.from_numpy(gguf.dequantize(data, of))
    made = block.decode(torch.from_numpy(data).reshape(5, -1, block.nbytes))
    assert made.group_size == 32
    if block.exact:
        torch.testing.assert_close(made.dequantized(), want, rtol=1e-6, atol=1e-7)
    else:
        step = want.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 127
        assert bool(((made.dequantized() - want).unflatten(1, (-1, 32)).abs() <= 0.501 * step).all())


def mixed(name: str) -> Kind:
    """As in files of "Q4_K_M": values and some of the rest finer than the others."""
    if "v_proj" in name or "lm_head" in name:
        return Kind.Q8_0
    return Kind.Q4_0 if "proj" in name else Kind.F16


@pytest.mark.parametrize(
    ("family", "kind", "config"),
    [
        ("llama", lambda name: Kind.F32, {}),
        ("llama", lambda name: Kind.Q8_0, {"tie_word_embeddings": True}),
        ("llama", mixed, {}),
        ("llama", lambda name: Kind.BF16, {"attention_bias": True}),
        ("qwen2", mixed, {}),
        ("qwen3", lambda name: Kind.Q4_0, {}),
        ("gemma2", lambda name: Kind.F32, {"query_pre_attn_scalar": 16}),
        ("gemma3", lambda name: Kind.F32, {"query_pre_attn_scalar": 16, "sliding_window_pattern": 6}),
    ],
)
def test_a_file_is_the_model_its_tensors_stand_for(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    logits: Callable[..., torch.Tensor],
    family: str,
    kind: Callable[[str], Kind],
    config: dict[str, object],
) -> None:
    folder = checkpoint(family, hidden_size=64, intermediate_size=128, num_attention_heads=4, **config)
    more = {"attention.sliding_window": 4096} if family.startswith("gemma") else {}
    more |= {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 9.0} if family == "gemma2" else {}
    more |= {"rope.freq_base": 1e6} if family == "gemma3" else {}
    values = write_gguf(folder, tmp_path / "model.gguf", family, kind, metadata=more)
    full = tmp_path / "full"
    full.mkdir()
    for file in folder.iterdir():
        (full / file.name).write_bytes(file.read_bytes())
    save_file(values, full / "model.safetensors")
    quantized = any(kind(name).name in BLOCKS for name in values)
    got, want = logits(resolve_model(str(tmp_path / "model.gguf"))), logits(full)
    assert F.cosine_similarity(got, want).min() > (0.99 if quantized else 0.9999)  # activations are rounded too
    assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.998


def test_matrices_come_as_they_are_stored(source: Path, tmp_path: Path) -> None:
    values = write_gguf(source, tmp_path / "model.gguf", "llama", mixed)
    weights = open_weights(resolve_model(str(tmp_path)))
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        module = f"model.layers.1.self_attn.{name}"
        want = values[f"{module}.weight"]
        found = weights.weight(module, tuple(want.shape))
        assert isinstance(found, QuantizedWeight)
        assert found.bits == (8 if name == "v_proj" else 4)
        torch.testing.assert_close(found.dequantized(), want, rtol=1e-6, atol=1e-7)
    assert weights.read("model.embed_tokens.weight", (384, 64)).dtype == torch.float16
    assert "lm_head.weight" in weights.unread


def test_kinds_without_arithmetic_are_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(source, path, "llama", lambda name: Kind.Q8_0)
    data = path.read_bytes()
    q8, iq4 = (np.uint32(of).tobytes() for of in (Kind.Q8_0, Kind.IQ4_NL))
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    assert data[at : at + 4] == q8
    path.write_bytes(data[:at] + iq4 + data[at + 4 :])
    with pytest.raises(UnsupportedModelError, match=r"q_proj.*IQ4_NL"):
        open_weights(resolve_model(str(path)))


def test_tensors_that_nobody_wants_are_told(source: Path) -> None:
    assert set(open_weights(source).unread) == set(load_file(source / "model.safetensors"))
