"""Which format a model's folder is in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from octavo.config import QUANTIZATIONS
from octavo.errors import ConfigError
from octavo.hub import CONFIG_FILE, read_json
from octavo.model.checkpoint import Checkpoint
from octavo.model.config_file import ConfigFile
from octavo.model.formats.awq import Awq
from octavo.model.formats.compressed_tensors import CompressedTensors
from octavo.model.formats.gguf import GgufWeights
from octavo.model.formats.gptq import Gptq
from octavo.model.formats.weights import Layout, SafetensorsWeights, Weights

LAYOUTS: dict[str, Callable[[ConfigFile], Layout]] = {
    "compressed-tensors": CompressedTensors,
    "gptq": Gptq,
    "awq": Awq,
}
"""``quant_method`` of config.json's quantization_config -> what reads it."""

RECORD = "octavo"
"""The object of config.json in which a folder that Octavo wrote says how its weights were quantised."""


def open_weights(folder: Path) -> Weights:
    """The weights of the model in ``folder``.

    Raises:
        UnsupportedModelError: they are quantised in a way that Octavo has no arithmetic for.
        ModelNotFoundError: there are none.
        UnsafeWeightsError: there are only pickled ones.
        WeightsError: a file is damaged.
    """
    settings = quantization_settings(folder)
    if settings is None:
        return SafetensorsWeights(Checkpoint(folder))
    method = settings.text("quant_method", "")
    if method == "gguf":
        return GgufWeights(folder, settings)
    if method not in LAYOUTS:
        raise settings.refuse(
            "quant_method",
            f"is not supported: Octavo reads {', '.join(LAYOUTS)} and GGUF files of 4 and 8 bits; use one of these, or "
            "the unquantised checkpoint with quantization='int8'",
        )
    layout = LAYOUTS[method](settings)
    return SafetensorsWeights(Checkpoint(folder), layout)


def quantization_settings(folder: Path) -> ConfigFile | None:
    """What config.json says of quantisation; None where it says nothing.

    Raises:
        UnsupportedModelError: it is no object.
    """
    path = folder / CONFIG_FILE
    file = ConfigFile(path, read_json(path))
    name = next((name for name in ("quantization_config", "compression_config") if file.get(name) is not None), None)
    return None if name is None else file.nested(name)


def agreed_quantization(folder: Path, asked: str | None) -> str | None:
    """How weights that are stored in full are quantised while they are loaded: as the user asks, or as the folder
    records of itself.

    Raises:
        ConfigError: these contradict each other.
    """
    path = folder / CONFIG_FILE
    recorded = ConfigFile(path, read_json(path)).nested(RECORD).get("quantization")
    if recorded is not None and recorded not in QUANTIZATIONS:
        raise ConfigError(f"{path}: {RECORD}.quantization={recorded!r} is unknown: use {', '.join(QUANTIZATIONS)}")
    if None not in (asked, recorded) and asked != recorded:
        raise ConfigError(
            f"quantization={asked!r} contradicts {folder}, which was written with {recorded!r}: leave quantization out"
        )
    return asked or recorded
