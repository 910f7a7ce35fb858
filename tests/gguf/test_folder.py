"""The folder that stands for a GGUF file: what it says, that it is made once, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf_files import write_gguf

from octavo.config import EngineConfig
from octavo.engine import LLMEngine
from octavo.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError, WeightsError
from octavo.gguf import unpacked
from octavo.gguf.header import Header
from octavo.hub import eos_token_ids, resolve_model
from octavo.model import ModelConfig, RopeConfig, read_model_config
from octavo.request import SamplingParams


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OCTAVO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def shape(config: ModelConfig) -> dict[str, Any]:
    """All that a decoder is made of."""
    return {name: getattr(config, name) for name in config.__slots__ if name != "dtype"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_the_model_is_the_one_that_was_written(checkpoint: Callable[..., Path], tmp_path: Path, family: str) -> None:
    own: dict[str, Any] = {"query_pre_attn_scalar": 16} if family.startswith("gemma") else {}
    own |= {"sliding_window_pattern": 6} if family == "gemma3" else {}
    folder = checkpoint(family, **own)
    more: dict[str, Any] = {"attention.sliding_window": 4096} if family.startswith("gemma") else {}
    more |= {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 9.0} if family == "gemma2" else {}
    write_gguf(folder, tmp_path / "model.gguf", family, metadata=more)
    made = resolve_model(str(tmp_path / "model.gguf"))
    got, want = shape(read_model_config(made)), shape(read_model_config(folder))
    assert got.pop("norm_eps") == pytest.approx(want.pop("norm_eps"))
    assert got == want
    assert eos_token_ids(made) == (1,)


def test_a_folder_is_made_once_for_a_file_as_it_is(source: Path, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(source, path)
    first = unpacked(path)
    assert unpacked(path) == first
    write_gguf(source, path, kind=lambda name: Kind.F16)
    assert unpacked(path) != first
    assert len(list(cache.iterdir())) == 2  # and nothing half made


def test_a_cache_that_cannot_be_written_is_named(source: Path, tmp_path: Path, cache: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf")
    cache.parent.write_text("a file in the way")
    with pytest.raises(ModelError, match="OCTAVO_CACHE_DIR"):
        unpacked(tmp_path / "model.gguf")


def test_llama_3s_stretched_rope_is_found_again(source: Path, tmp_path: Path) -> None:
    import gguf

    config = json.loads((source / "config.json").read_text())
    path = tmp_path / "model.gguf"
    write_gguf(source, path, metadata={"rope.freq_base": 500_000.0})
    factors = np.array([1, 1, 1, 1, 2.8, 8, 8, 8], np.float32)
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, 16, 2) / 16)
    between = (wavelengths >= 2048) & (wavelengths <= 8192)
    smooth = (8192 / wavelengths[between] - 1) / 3
    factors = np.where(wavelengths < 2048, 1.0, 8.0)
    factors[between] = 1 / ((1 - smooth) / 8 + smooth)
    assert config["head_dim"] == 16

    def written(values: np.ndarray) -> Path:
        reader = gguf.GGUFReader(path)
        out = tmp_path / "stretched.gguf"
        writer = gguf.GGUFWriter(out, "llama")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":
                continue
            writer.add_key_value(
                name, field.contents(), field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None
            )
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.add_tensor("rope_freqs.weight", values.astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return out

    rope = read_model_config(unpacked(written(factors))).rope
    assert rope == RopeConfig(
        kind="llama3",
        theta=500_000.0,
        factor=8.0,
        original_positions=8192,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
    )
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        unpacked(written(factors * 1.5))


@pytest.mark.parametrize(
    ("architecture", "fields", "message"),
    [
        ("phi3", {}, "general.architecture='phi3'"),
        ("llama", {"expert_count": 8}, "expert_count=8"),
        ("llama", {"rope.dimension_count": 8}, "rope.dimension_count=8"),
    ],
)
def test_models_that_octavo_does_not_know_are_refused(
    source: Path, tmp_path: Path, architecture: str, fields: dict[str, int], message: str
) -> None:
    write_gguf(source, tmp_path / "model.gguf", architecture, metadata=fields)
    with pytest.raises(UnsupportedModelError, match=message):
        unpacked(tmp_path / "model.gguf")


def test_damaged_files_are_refused(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(source, path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a model", whole[:2000], whole[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match="truncated"):
            Header.read(path)


def test_revisions_are_for_hub_ids(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="revision"):
        resolve_model(str(tmp_path / "model.gguf"), "main")


def test_a_file_that_has_gone_is_named(source: Path, tmp_path: Path) -> None:
    from octavo.model.formats import open_weights

    path = tmp_path / "model.gguf"
    write_gguf(source, path)
    folder = unpacked(path)
    path.unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.gguf is gone"):
        open_weights(folder)


def test_a_file_generates_what_its_folder_does(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf")
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    texts = []
    for model in (source, tmp_path / "model.gguf"):
        with LLMEngine(EngineConfig(model=str(model), kernels="reference", dtype="float32", num_blocks=64)) as engine:
            texts.append(engine.generate(["Once upon a time"], params)[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


def test_another_tokenizer_serves_where_the_files_own_cannot(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "model.gguf", tokens={"pre": "default"})
    config = {"model": str(tmp_path / "model.gguf"), "kernels": "reference", "dtype": "float32", "num_blocks": 64}
    with pytest.raises(UnsupportedModelError, match="--tokenizer"):
        LLMEngine(EngineConfig(**config))
    with LLMEngine(EngineConfig(**config, tokenizer=str(source))) as engine:
        assert engine.tokenizer.folder == source
