"""Checkpoints good and bad: each bad one is refused by file and tensor, before a wrong token could come of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paged_runner import PagedRunner
from safetensors.torch import load_file, save_file

from octavo import kernels
from octavo.errors import (
    ConfigError,
    ModelNotFoundError,
    UnsafeWeightsError,
    UnsupportedModelError,
    WeightsError,
)
from octavo.model import Decoder, load_model, read_model_config, weights_bytes

pytestmark = pytest.mark.usefixtures("one_thread")

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
PROMPT = list(range(5, 45))


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.fixture
def sharded(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("llama", max_shard_size="100KB"), tmp_path / "sharded"))


def load(folder: Path, dtype: str = "float32", **options: object) -> Decoder:
    return load_model(folder, dtype=dtype, kernels=kernels.load("reference"), **options)  # type: ignore[arg-type]


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def configure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def logits(decoder: Decoder) -> torch.Tensor:
    return PagedRunner(decoder).run({0: PROMPT})


def test_shards_load_as_one_file_does(tiny_llama: Path, sharded: Path) -> None:
    assert not (sharded / "model.safetensors").exists()
    assert torch.equal(logits(load(sharded, batch_invariant=True)), logits(load(tiny_llama, batch_invariant=True)))


def test_one_file_of_any_name(folder: Path, tiny_llama: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert torch.equal(logits(load(folder, batch_invariant=True)), logits(load(tiny_llama, batch_invariant=True)))


def test_names_without_the_prefix(folder: Path, tiny_llama: Path) -> None:
    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit(folder, strip)
    assert torch.equal(logits(load(folder, batch_invariant=True)), logits(load(tiny_llama, batch_invariant=True)))


def test_auto_dtype_is_the_checkpoints_where_the_machine_computes_it(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.model import dtypes

    folder = checkpoint("llama", dtype="bfloat16")
    monkeypatch.setattr(dtypes, "cpu_computes", lambda dtype: True)
    assert load(folder, "auto").dtype == torch.bfloat16
    monkeypatch.setattr(dtypes, "cpu_computes", lambda dtype: dtype == torch.float32)
    decoder = load(folder, "auto")
    assert decoder.dtype == torch.float32
    assert any("bfloat16" in note and "float32" in note for note in decoder.notes)


def test_without_a_word_in_config_the_tensors_tell_the_dtype(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.model import dtypes

    monkeypatch.setattr(dtypes, "cpu_computes", lambda dtype: True)
    folder = Path(shutil.copytree(checkpoint("llama", dtype="bfloat16"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load(folder, "auto").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_the_weights_take_no_more_than_planned(checkpoint: Callable[..., Path], tied: bool, dtype: torch.dtype) -> None:
    folder = checkpoint("qwen3", tie_word_embeddings=tied, attention_bias=True)
    decoder = load(folder, str(dtype).removeprefix("torch."))
    stored = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values()) * dtype.itemsize
    config = read_model_config(folder)
    table = config.vocab_size * config.hidden_size * dtype.itemsize
    assert weights_bytes(config, dtype) == stored + table
    assert decoder.weights_bytes in ((stored, stored + table) if tied else (stored,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_with_an_offset_are_kept_in_float32(checkpoint: Callable[..., Path], dtype: torch.dtype) -> None:
    folder = checkpoint("gemma3", dtype="bfloat16")
    decoder = load(folder, str(dtype).removeprefix("torch."))
    tensors = load_file(folder / "model.safetensors")
    size = {name: t.numel() * (4 if "norm" in name else dtype.itemsize) for name, t in tensors.items()}
    table = size["model.embed_tokens.weight"]
    assert weights_bytes(decoder.config, dtype) == sum(size.values()) + table
    assert decoder.weights_bytes in (sum(size.values()), sum(size.values()) + table)
    norm = "layers.1.pre_feedforward_layernorm.weight"
    assert torch.equal(decoder._layers[1].mlp_norm, 1.0 + tensors[f"model.{norm}"].float())


@pytest.mark.parametrize("places", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_model_with_eyes_under_either_name(
    checkpoint: Callable[..., Path], tmp_path: Path, places: str
) -> None:
    source = checkpoint("gemma3 with vision")
    copy = Path(shutil.copytree(source, tmp_path / "model"))

    def move(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace("language_model.model.", places)] = tensors.pop(name)

    edit(copy, move)
    decoder = load(copy, batch_invariant=True)
    assert torch.equal(logits(decoder), logits(load(source, batch_invariant=True)))
    assert any("vision_tower" in note or "multi_modal" in note for note in decoder.notes)


def test_progress_ends_at_all(tiny_llama: Path) -> None:
    reports: list[tuple[str, int, int]] = []
    load(tiny_llama, progress=lambda *report: reports.append(report))
    done = [report[1] for report in reports]
    assert done == sorted(done)
    assert reports[-1][1] == reports[-1][2] > 0
    assert {report[0] for report in reports} == {"loading weights"}


def test_loading_holds_no_second_copy(checkpoint: Callable[..., Path]) -> None:
    """Every tensor that is alive at once, counted: never more than the weights and one fused matrix, twice (packing
    reads one copy and writes another)."""
    from octavo.model import loader

    folder = checkpoint("llama", num_hidden_layers=8, dtype="bfloat16")
    alive: list[int] = []

    def count(what: str, done: int, total: int) -> None:
        alive.append(sum(t.nbytes for t in _tensors() if t.dtype == torch.float32))

    decoder = loader.load_model(folder, dtype="float32", kernels=kernels.load("reference"), progress=count)
    largest = 4 * 2 * 160 * 96
    assert max(alive) - alive[0] <= decoder.weights_bytes + 2 * largest


def _tensors() -> list[torch.Tensor]:
    import gc

    return [item for item in gc.get_objects() if type(item) is torch.Tensor and item.layout == torch.strided]


def test_known_buffers_are_ignored_and_the_unknown_are_noted(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert not any("does not use" in note for note in load(folder).notes)
    edit(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(96)}))
    notes = load(folder).notes
    assert any("does not use" in note and "q_proj.bias" in note for note in notes)


def test_a_tied_head_may_be_stored_under_either_name_or_both(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    source = checkpoint("llama", tie_word_embeddings=True)
    wanted = logits(load(source, batch_invariant=True))

    both = Path(shutil.copytree(source, tmp_path / "both"))
    edit(both, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    assert torch.equal(logits(load(both, batch_invariant=True)), wanted)

    other = Path(shutil.copytree(source, tmp_path / "other"))
    edit(other, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    assert torch.equal(logits(load(other, batch_invariant=True)), wanted)


def test_a_tied_head_stored_with_other_values_is_not_tied(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from checkpoints import load_reference

    folder = Path(shutil.copytree(checkpoint("llama", tie_word_embeddings=True), tmp_path / "model"))
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": torch.randn(384, 96)}))
    decoder = load(folder)
    assert any("untied" in note for note in decoder.notes)
    with torch.no_grad():
        wanted = load_reference(folder)(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(logits(decoder), wanted, atol=3e-4, rtol=0)


def test_a_missing_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop(Q_PROJ))
    with pytest.raises(WeightsError, match=Q_PROJ) as caught:
        load(folder)
    assert str(folder / "model.safetensors") in str(caught.value)


def test_a_missing_head(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(WeightsError, match=r"lm_head\.weight"):
        load(folder)


def test_a_missing_bias(folder: Path) -> None:
    configure(folder, attention_bias=True)
    with pytest.raises(WeightsError, match=r"q_proj\.bias"):
        load(folder)


def test_a_tensor_of_the_wrong_shape(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(96, 95)}))
    with pytest.raises(WeightsError, match=r"\(96, 95\).*\(96, 96\)") as caught:
        load(folder)
    assert Q_PROJ in str(caught.value)


def test_a_config_of_other_sizes(folder: Path) -> None:
    configure(folder, vocab_size=400)
    with pytest.raises(WeightsError, match=r"embed_tokens.*\(400, 96\)"):
        load(folder)


def test_a_quantised_tensor(folder: Path) -> None:
    edit(folder, lambda tensors: tensors.update({Q_PROJ: torch.zeros(96, 96, dtype=torch.int8)}))
    with pytest.raises(WeightsError, match=r"int8.*unquantised"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, -1, -5000])
def test_a_truncated_file(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(WeightsError, match="truncated") as caught:
        load(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{not json at all}", b"<html>404</html>"])
def test_a_file_that_is_no_safetensors(folder: Path, data: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load(folder)


def test_an_index_that_names_a_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=shard.name) as caught:
        load(sharded)
    assert "model.safetensors.index.json" in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        (None, "weight_map"),
        ({}, "weight_map"),
        ({"x": 3}, "no file of the folder"),
        ({"x": "../config.json"}, "no file of the folder"),
    ],
)
def test_a_malformed_index(sharded: Path, weight_map: object, sentence: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(WeightsError, match=sentence):
        load(sharded)


def test_an_index_that_places_a_tensor_where_it_is_not(sharded: Path) -> None:
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"model\.extra"):
        load(sharded)


def test_pickles_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model\.bin.*convert"):
        load(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="no weights"):
        load(folder)


def test_several_files_and_no_index(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "a.safetensors")
    (folder / "model.safetensors").rename(folder / "b.safetensors")
    with pytest.raises(WeightsError, match="belong together"):
        load(folder)


def test_an_unknown_architecture_is_refused_before_any_weight_is_read(folder: Path) -> None:
    configure(folder, architectures=["OtherForCausalLM"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match="OtherForCausalLM"):
        load(folder)


def test_an_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ConfigError, match="int8"):
        load(folder, "int8")


def test_a_tied_embedding_that_the_heads_panels_can_tell_is_held_once(checkpoint: Callable[..., Path]) -> None:
    backend = kernels.load("cpu")
    if not backend.PanelLinear.available():
        pytest.skip("this machine has no products in panels")
    folder = checkpoint("llama", tie_word_embeddings=True, vocab_size=128, dtype="bfloat16")
    tables = []
    for kind in ("plain", "panels"):
        decoder = load_model(folder, kernels=backend, dtype="bfloat16", linear_kind=kind)
        ids, rows = torch.tensor([0, 5, 127, 31, 32]), torch.zeros(5, decoder.config.hidden_size, dtype=torch.bfloat16)
        decoder._embedding(ids, rows)
        tables.append((rows, decoder.weights_bytes))
    assert torch.equal(tables[0][0], tables[1][0])
    assert tables[0][1] == tables[1][1]
    assert tables[0][0].any()
