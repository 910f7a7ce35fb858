"""The AWQ layout (Lin et al. 2023; AutoAWQ's "gemm" version).

A module of N outputs and K inputs has ``qweight`` int32 ``[K, N / 8]``, ``qzeros`` int32 ``[G, N / 8]`` and ``scales``
``[G, N]``. The eight numbers of a word belong to the outputs 0, 2, 4, 6, 1, 3, 5, 7 of their eight, lowest bits first.
"""

from __future__ import annotations

import torch

from octavo.model.checkpoint import Checkpoint
from octavo.model.config_file import ConfigFile
from octavo.model.formats.groups import group_size
from octavo.model.formats.packing import packed_nibbles, unpacked
from octavo.model.quantized import QuantizedWeight

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""For each of a word's eight outputs, which of its numbers is theirs."""


class Awq:
    """Reads AWQ modules.

    Args:
        settings: config.json's quantization_config.

    Raises:
        UnsupportedModelError: it describes another version or other bits.
    """

    def __init__(self, settings: ConfigFile) -> None:
        self.settings = settings
        if settings.integer("bits", 4) != 4:
            raise settings.refuse("bits", "is not supported: use 4")
        if settings.text("version", "gemm").lower() != "gemm":
            raise settings.refuse("version", "is not supported: use 'gemm'")
        if not settings.flag("zero_point", True):
            raise settings.refuse("zero_point", "is not supported: use a checkpoint made with zero_point=True")
        self.size = settings.integer("group_size", 128, low=-1)

    def has(self, checkpoint: Checkpoint, module: str) -> bool:
        """Whether this module is quantised."""
        return f"{module}.qweight" in checkpoint

    def weight(self, checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> QuantizedWeight:
        """As :meth:`Layout.weight`."""
        rows, inputs = shape
        size = group_size(self.settings, "group_size", self.size, inputs, module)
        groups = inputs // size
        words = checkpoint.read(f"{module}.qweight", (inputs, rows // 8), (torch.int32,))
        zeros = checkpoint.read(f"{module}.qzeros", (groups, rows // 8), (torch.int32,))
        scales = checkpoint.read(f"{module}.scales", (groups, rows)).t().to(torch.float32).contiguous()
        values = packed_nibbles(_in_order(words).t())
        return QuantizedWeight(values.contiguous(), scales, scales * _in_order(zeros).t().float(), 4)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    """The numbers of each row, by output: ``[R, N / 8] -> uint8 [R, N]``."""
    return unpacked(words, 4).unflatten(1, (-1, 8))[:, :, _PLACES].flatten(1)
