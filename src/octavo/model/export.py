"""A checkpoint written again with its matrices in few bits, so that the next start need not make them.

The layout is that of compressed-tensors, which vLLM and transformers read too: ``int-quantized`` (8 bits by output,
activations rounded token by token) or ``pack-quantized`` (4 bits in groups). Embeddings and head stay in full, since
others have no such arithmetic for them, and so does what some machines had better multiply in full; Octavo, told by
``octavo.quantization`` in config.json, makes them 8 bits while it loads the folder, as it does with the checkpoint that
the folder was made from. So both give the same tokens.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from octavo.errors import ConfigError, EngineError, ModelError, UnsupportedModelError
from octavo.hub import CONFIG_FILE, FETCHED, Progress, read_json
from octavo.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from octavo.model.families import read_model_config
from octavo.model.formats.choose import RECORD, quantization_settings
from octavo.model.formats.quantizing import QuantizingWeights
from octavo.model.formats.weights import SafetensorsWeights
from octavo.model.places import place_of
from octavo.model.quantized import QuantizedWeight
from octavo.model.tensor_file import TensorFile

_MODULE = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_KEPT = (*FETCHED, "LICENSE*", "NOTICE*")
_NOT_KEPT = ("*.safetensors", INDEX_FILE, CONFIG_FILE)
_PARTS = ("weight", "weight_packed", "weight_scale", "weight_shape")


class Exported(NamedTuple):
    """What was written. Sizes are of the weights, in bytes."""

    folder: Path
    modules: int  #: in few bits
    nbytes: int
    nbytes_before: int


def export(folder: Path, out: Path, quantization: str, progress: Progress | None = None) -> Exported:
    """Write the model of ``folder`` to ``out``, quantised. One matrix is held at a time.

    The folder comes into being whole or not at all: it is made beside its place and moved there at the end.

    Args:
        folder: in Hugging Face layout, unquantised.
        out: a folder that does not exist, or is empty.
        quantization: as ``EngineConfig.quantization``.
        progress: called with ("quantising", bytes read, bytes in all).

    Raises:
        ConfigError: ``out`` is there already, or cannot be.
        UnsupportedModelError: the model is quantised already, or not one that Octavo knows.
        ModelError: files are missing or damaged, or ``out`` cannot be written.
    """
    read_model_config(folder)
    settings = quantization_settings(folder)
    if settings is not None:
        method = settings.get("quant_method")
        raise UnsupportedModelError(f"{folder} is quantised already ({method}): it loads as it is")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: name a folder that does not exist, or is empty")
    checkpoint = Checkpoint(folder)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error}") from error
    try:
        making.chmod(0o755)
        done = _Writing(folder, checkpoint, making, quantization, progress).run()
        if out.exists():
            out.rmdir()
        making.rename(out)
    except OSError as error:
        raise ModelError(f"{out} cannot be written: {error}") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Exported(out, *done)


class _Writing:
    """One export under way."""

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, out: Path, quantization: str, progress: Progress | None
    ) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.out = out
        self.quantization = quantization
        self.progress = progress
        self.weights = QuantizingWeights(SafetensorsWeights(checkpoint), quantization, full_is_quick=True)
        prefix, self.head = place_of(self.weights)
        self.module = re.compile(rf"{re.escape(prefix)}{_MODULE}")
        self.kinds: dict[tuple[int, int | None], list[str]] = {}  # bits and group size -> modules
        self.full: list[str] = []  # modules whose matrix stays in full

    def run(self) -> tuple[int, int, int]:
        """Returns the number of quantised modules, and the bytes of weights written and read."""
        names = self.checkpoint.names
        total = sum(self.checkpoint.nbytes(name) for name in names)
        done = 0
        possible = [f"{name.removesuffix('.weight')}.{part}" for name in names for part in _PARTS]
        with TensorFile(self.out / SINGLE_FILE, [*names, *possible]) as file:
            for name in names:
                for stored, tensor in self._written(name):
                    file.write(stored, tensor)
                done += self.checkpoint.nbytes(name)
                if self.progress is not None:
                    self.progress("quantising", done, total)
        modules = sum(map(len, self.kinds.values()))
        if not modules:
            raise UnsupportedModelError(f"{self.folder} has no matrix that could be quantised")
        self._copy_files()
        return modules, (self.out / SINGLE_FILE).stat().st_size, total

    def _written(self, name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """What becomes of a tensor."""
        module, shape = name.removesuffix(".weight"), self.checkpoint.shape(name)
        if len(shape) == 2 and name.endswith(".weight") and self.module.fullmatch(module):
            weight = self.weights.weight(module, (shape[0], shape[1]))
            if isinstance(weight, QuantizedWeight):
                size = None if weight.group_size == shape[1] else weight.group_size
                self.kinds.setdefault((weight.bits, size), []).append(module)
                yield from _spelt(module, weight)
                return
        if len(shape) == 2 and name.endswith(".weight"):
            self.full.append(module)
        yield name, self.checkpoint.read(name, shape)

    def _copy_files(self) -> None:
        """Everything beside the weights, and config.json with a word on these."""
        kept = {path for pattern in _KEPT for path in self.folder.glob(pattern) if path.is_file()}
        left = {path for pattern in _NOT_KEPT for path in self.folder.glob(pattern)}
        for path in sorted(kept - left):
            shutil.copyfile(path, self.out / path.name)
        templates = self.folder / "additional_chat_templates"
        if templates.is_dir():
            shutil.copytree(templates, self.out / templates.name)
        config = read_json(self.folder / CONFIG_FILE)
        config["quantization_config"] = self._settings()
        config[RECORD] = {"quantization": self.quantization}
        (self.out / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _settings(self) -> dict[str, Any]:
        """As compressed-tensors describes what was written: the commonest kind for all, others by name."""
        kinds = sorted(self.kinds.items(), key=lambda kind: -len(kind[1]))
        groups = {
            f"group_{place}": _scheme(bits, size, modules if place else ["Linear"])
            for place, ((bits, size), modules) in enumerate(kinds)
        }
        head = self.head.removesuffix(".weight")
        return {
            "quant_method": "compressed-tensors",
            "format": groups["group_0"]["format"],
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": sorted({head, *(name for name in self.full if not name.endswith("embed_tokens"))}),
        }


def _spelt(module: str, weight: QuantizedWeight) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a quantised module."""
    if weight.bits == 8:
        if weight.mins is not None:
            raise EngineError(f"{module} has 8 bits that are not centred, which are not written")
        yield f"{module}.weight", weight.values
    else:
        if weight.mins is None or not torch.equal(weight.mins, weight.scales * 8):
            raise EngineError(f"{module} has 4 bits that are not centred, which are not written")
        yield f"{module}.weight_shape", torch.tensor(weight.shape)
        yield f"{module}.weight_packed", weight.values.view(torch.int32)
    yield f"{module}.weight_scale", weight.scales


def _scheme(bits: int, size: int | None, targets: list[str]) -> dict[str, Any]:
    """One of ``config_groups``."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
        "dynamic": False,
    }
    by_token = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "weights": weights,
        "input_activations": by_token if bits == 8 else None,
        "output_activations": None,
        "format": "int-quantized" if bits == 8 else "pack-quantized",
    }
