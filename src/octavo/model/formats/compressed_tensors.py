"""The compressed-tensors layout (vLLM's llm-compressor), and what :mod:`octavo.model.export` writes.

``int-quantized`` and ``naive-quantized`` hold ``weight`` int8 ``[N, K]``; ``pack-quantized`` holds ``weight_packed``,
the numbers of a row in int32 words, moved up by half their range so as to begin at zero. ``weight_scale`` is ``[N, G]``
in floating point; ``weight_zero_point``, for asymmetric ones, ``[N, G]`` likewise packed (along N) or int8.
"""

from __future__ import annotations

import re

import torch

from octavo.errors import WeightsError
from octavo.model.checkpoint import Checkpoint
from octavo.model.config_file import ConfigFile
from octavo.model.formats.groups import group_size
from octavo.model.formats.packing import packed_bytes, signed_bytes, unpacked, with_zeros
from octavo.model.quantized import QuantizedWeight

_WHOLE = ("int-quantized", "naive-quantized")
_PACKED = "pack-quantized"


class CompressedTensors:
    """Reads what ``config_groups`` describes.

    Args:
        settings: config.json's quantization_config.

    Raises:
        UnsupportedModelError: it describes arithmetic that Octavo does not have.
    """

    def __init__(self, settings: ConfigFile) -> None:
        for name in ("kv_cache_scheme", "transform_config"):
            if settings.get(name):
                raise settings.refuse(name, "is not supported: use a checkpoint that quantises weights alone")
        sparsity = settings.nested("sparsity_config")
        if sparsity.text("format", "dense") != "dense":
            raise sparsity.refuse("format", "is not supported: use a checkpoint that is not sparse")
        groups = settings.nested("config_groups")
        if not groups.values:
            raise settings.refuse("config_groups", "must describe how modules are quantised")
        default = settings.text("format", _PACKED)
        self._groups = [_Group(groups.nested(name), default) for name in groups.values]

    def has(self, checkpoint: Checkpoint, module: str) -> bool:
        """Whether this module is quantised: the tensors tell, whatever ``ignore`` says."""
        return f"{module}.weight_packed" in checkpoint or f"{module}.weight_scale" in checkpoint

    def weight(self, checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> QuantizedWeight:
        """As :meth:`Layout.weight`."""
        group = self._group(module)
        if f"{module}.weight_g_idx" in checkpoint:
            raise group.refuse("actorder", "reorders inputs at run time, which is not supported: use actorder='weight'")
        rows, inputs = shape
        size = group_size(group.weights, "group_size", group.size, inputs, module)
        scales = self._scales(checkpoint, module, rows, inputs // size)
        zeros = self._zeros(checkpoint, module, group, scales)
        if group.bits == 4:
            mins = scales * (8 if zeros is None else zeros.float() + 8)
            return QuantizedWeight(_packed(checkpoint, module, shape, 4), scales, mins, 4)
        values = signed_bytes(_packed(checkpoint, module, shape, 8)) if group.packed else None
        if values is None:
            values = checkpoint.read(f"{module}.weight", shape, (torch.int8,))
        return QuantizedWeight(values, scales, None if zeros is None else with_zeros(scales, zeros), 8)

    def _group(self, module: str) -> _Group:
        """The one whose targets name the module, or match it, or else name its class."""
        for rule in (_Group.names, _Group.matches, _Group.takes_linears):
            for group in self._groups:
                if rule(group, module):
                    return group
        raise WeightsError(f"{module} is quantised, but no config_groups of quantization_config has it as a target")

    @staticmethod
    def _scales(checkpoint: Checkpoint, module: str, rows: int, groups: int) -> torch.Tensor:
        name = f"{module}.weight_scale"
        shape = (rows,) if groups == 1 and checkpoint.shape(name) == (rows,) else (rows, groups)
        return checkpoint.read(name, shape).reshape(rows, groups).to(torch.float32)

    @staticmethod
    def _zeros(checkpoint: Checkpoint, module: str, group: _Group, scales: torch.Tensor) -> torch.Tensor | None:
        """Zero points as signed numbers ``[N, G]``; None where the scheme is symmetric."""
        if group.symmetric:
            return None
        name, (rows, groups) = f"{module}.weight_zero_point", scales.shape
        if checkpoint.shape(name) == (rows, groups):
            return checkpoint.read(name, (rows, groups), (torch.int8,))
        words = checkpoint.read(name, (-(-rows * group.bits // 32), groups), (torch.int32,))
        found = unpacked(words.t(), group.bits)[:, :rows].t()
        return found.to(torch.int16) - 2 ** (group.bits - 1)


class _Group:
    """One of ``config_groups``, checked."""

    def __init__(self, file: ConfigFile, default: str) -> None:
        self.file = file
        self.format = file.text("format", default)
        if self.format not in (*_WHOLE, _PACKED):
            raise file.refuse("format", f"({self.format!r}) is not supported: use {', '.join((*_WHOLE, _PACKED))}")
        self.packed = self.format == _PACKED
        self.weights = weights = file.nested("weights")
        if weights.text("type", "int") != "int":
            raise weights.refuse(
                "type", "is not supported: use a checkpoint of whole numbers (W8A8-INT8, W4A16, W8A16)"
            )
        self.bits = weights.integer("num_bits", 8)
        if self.bits != 8 and not (self.bits == 4 and self.packed):
            raise weights.refuse("num_bits", f"is not supported in format {self.format!r}: use 8, or 4 in {_PACKED!r}")
        strategy = weights.text("strategy", "group" if weights.get("group_size") else "channel")
        if strategy not in ("group", "channel"):
            raise weights.refuse("strategy", "is not supported: use 'channel' or 'group'")
        self.size = weights.integer("group_size") if strategy == "group" else None
        self.symmetric = weights.flag("symmetric", True)
        self._check_activations()
        targets = file.get("targets")
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise file.refuse("targets", "must be a list of names")
        self.targets: list[str] = targets

    def _check_activations(self) -> None:
        if self.file.get("output_activations"):
            raise self.file.refuse("output_activations", "is not supported: use a checkpoint without them")
        inputs = self.file.nested("input_activations")
        if not inputs.values:
            return
        if inputs.text("type", "int") != "int" or inputs.integer("num_bits", 8) != 8:
            raise inputs.refuse(
                "num_bits", f"of type {inputs.get('type')!r} is not supported: use int of 8 bits, or none"
            )
        if inputs.get("dynamic") is not True or inputs.text("strategy", "token") != "token":
            raise inputs.refuse("dynamic", "is not supported: activations are scaled for each token at run time")

    def refuse(self, name: str, why: str) -> Exception:
        """The error that refuses a value of the weights' scheme."""
        return self.weights.refuse(name, why)

    def names(self, module: str) -> bool:
        """Whether a target is this module's name."""
        return module in self.targets

    def matches(self, module: str) -> bool:
        """Whether a target is a pattern that matches."""
        return any(re.match(target[3:], module) for target in self.targets if target.startswith("re:"))

    def takes_linears(self, _: str) -> bool:
        """Whether a target is the class of all matrix products."""
        return "Linear" in self.targets


def _packed(checkpoint: Checkpoint, module: str, shape: tuple[int, int], bits: int) -> torch.Tensor:
    """Numbers in the bytes that hold them: uint8 ``[N, K * bits / 8]``."""
    rows, inputs = shape
    words = checkpoint.read(f"{module}.weight_packed", (rows, -(-inputs * bits // 32)), (torch.int32,))
    return packed_bytes(words)[:, : inputs * bits // 8]
