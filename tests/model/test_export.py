"""A folder written in few bits serves the very tokens of the model it was made from, and is whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from paged_runner import PagedRunner
from safetensors.torch import load_file, save_file

from octavo import kernels
from octavo.config import QUANTIZATIONS
from octavo.errors import ConfigError, ModelError, ModelNotFoundError, UnsupportedModelError, WeightsError
from octavo.model import load_model
from octavo.model.export import export

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = list(range(5, 45))


@pytest.fixture
def source(checkpoint: Callable[..., Path]) -> Path:
    """A Llama whose matrices have 64 and 96 inputs: 4 bits have groups of two sizes."""
    return checkpoint("llama", hidden_size=64, intermediate_size=96, num_attention_heads=4, dtype="bfloat16")


def logits(folder: Path, quantization: str | None = None) -> torch.Tensor:
    decoder = load_model(folder, kernels=kernels.load("reference"), quantization=quantization)
    return PagedRunner(decoder).run({0: PROMPT})


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3 with vision"])
def test_the_same_bits_come_of_it(
    checkpoint: Callable[..., Path], tmp_path: Path, family: str, quantization: str
) -> None:
    config: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4}
    config |= {"tie_word_embeddings": True} if family == "qwen3" else {}
    folder = checkpoint(family, dtype="bfloat16", **config)
    done = export(folder, tmp_path / "out", quantization)
    assert done.modules == (12 if quantization == "int8" else 14)  # attention's output matrices stay in full
    assert done.nbytes < done.nbytes_before
    want = logits(folder, quantization)
    assert torch.equal(logits(tmp_path / "out"), want)
    assert torch.equal(logits(tmp_path / "out", quantization), want)
    assert not torch.equal(logits(folder), want)


@pytest.mark.parametrize("quick", [True, False])
def test_what_is_written_in_full_is_loaded_as_the_machine_likes_it(
    source: Path, tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = kernels.load("cpu")
    for name, told in (("available", True), ("by_tiles", quick)):
        monkeypatch.setattr(backend.PanelLinear, name, staticmethod(lambda told=told: told))
    export(source, tmp_path / "out", "int8")
    written = load_model(tmp_path / "out", dtype="bfloat16", kernels=backend)
    made = load_model(source, dtype="bfloat16", kernels=backend, quantization="int8")
    assert written.notes == made.notes
    assert any("kept in full" in note for note in made.notes) == quick
    assert torch.equal(PagedRunner(written).run({0: PROMPT}), PagedRunner(made).run({0: PROMPT}))


def test_what_lies_beside_the_weights_comes_along(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    (folder / "LICENSE").write_text("as you like")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    seen: list[tuple[str, int, int]] = []
    export(folder, tmp_path / "out", "int8", lambda *state: seen.append(state))
    files = {path.name for path in folder.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files
    assert (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert seen[-1][1] == seen[-1][2] > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_shards_become_one_file(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    export(checkpoint("llama", max_shard_size="100KB"), tmp_path / "out", "int8")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


def test_the_configuration_says_what_other_engines_need(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "int8")
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["format"]) == ("compressed-tensors", "int-quantized")
    (group,) = settings["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert group["weights"]["strategy"] == "channel"
    assert group["input_activations"]["dynamic"] is True
    assert settings["ignore"] == ["lm_head", *(f"model.layers.{i}.self_attn.o_proj" for i in range(2))]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["model.layers.0.mlp.down_proj.weight"].dtype == torch.int8
    assert tensors["model.layers.0.mlp.down_proj.weight_scale"].shape == (64, 1)
    assert tensors["lm_head.weight"].dtype == torch.bfloat16


def test_another_quantization_contradicts_the_folder(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "int8")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"octavo": {"quantization": "int3"}}))
    with pytest.raises(ConfigError, match=r"octavo\.quantization='int3'"):
        logits(tmp_path / "out")


def test_what_is_quantised_already_is_refused(source: Path, tmp_path: Path) -> None:
    export(source, tmp_path / "out", "int8")
    with pytest.raises(UnsupportedModelError, match="already"):
        export(tmp_path / "out", tmp_path / "again", "int8")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("there", ["a file", "a full folder", "under a file"])
def test_a_place_that_is_taken_is_refused(source: Path, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    if there == "a full folder":
        out.mkdir()
        (out / "kept").write_text("as it was")
    else:
        out.write_text("as it was")
    with pytest.raises(ConfigError, match="out"):
        export(source, out / "below" if there == "under a file" else out, "int8")
    assert (out / "kept" if out.is_dir() else out).read_text() == "as it was"


def test_an_empty_folder_is_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(source, tmp_path / "out", "int8").folder == tmp_path / "out"
    assert (tmp_path / "out" / "config.json").is_file()


def not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (not_finite, WeightsError),
        (lambda folder: (folder / "model.safetensors").unlink(), ModelNotFoundError),
        (lambda folder: (folder / "config.json").write_text("{}"), UnsupportedModelError),
    ],
)
def test_nothing_is_left_of_a_failure(
    source: Path, tmp_path: Path, spoil: Callable[[Path], object], kind: type[ModelError]
) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    spoil(folder)
    with pytest.raises(kind):
        export(folder, tmp_path / "out", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("octavo.model.tensor_file.TensorFile.write", full)
    with pytest.raises(ModelError, match="No space left"):
        export(source, tmp_path / "out", "int8")
    assert list(tmp_path.iterdir()) == []
