"""The GPTQ layout (Frantar et al. 2022; AutoGPTQ, GPTQModel).

A module of N outputs and K inputs has ``qweight`` int32 ``[K * bits / 32, N]``, numbers packed along K; ``scales``
``[G, N]``; ``qzeros`` int32 ``[G, N * bits / 32]``, packed along N, each one less than the zero point it stands for
(version 1) or the zero point itself (version 2); and ``g_idx`` ``[K]``, the group of each input.
"""

from __future__ import annotations

import torch

from octavo.model.checkpoint import Checkpoint
from octavo.model.config_file import ConfigFile
from octavo.model.formats.groups import group_size
from octavo.model.formats.packing import packed_bytes, signed_bytes, unpacked, with_zeros
from octavo.model.quantized import QuantizedWeight

_VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""``checkpoint_format`` -> what is to be added to a stored zero point."""


class Gptq:
    """Reads GPTQ modules of 4 and 8 bits whose inputs are in order.

    Args:
        settings: config.json's quantization_config.

    Raises:
        UnsupportedModelError: it describes something else.
    """

    def __init__(self, settings: ConfigFile) -> None:
        self.settings = settings
        self.bits = settings.integer("bits")
        if self.bits not in (4, 8):
            raise settings.refuse("bits", "is not supported: use 4 or 8")
        version = settings.text("checkpoint_format", "gptq")
        if version not in _VERSIONS:
            raise settings.refuse("checkpoint_format", f"is not supported: use {' or '.join(_VERSIONS)}")
        if settings.flag("is_marlin_format", False):
            raise settings.refuse("is_marlin_format", "is not supported: use the checkpoint it was made from")
        if settings.get("dynamic"):
            raise settings.refuse("dynamic", "is not supported: all modules must be quantised alike")
        if settings.text("pack_dtype", "int32") != "int32":
            raise settings.refuse("pack_dtype", "is not supported: use 'int32'")
        self.offset = _VERSIONS[version]
        self.size = settings.integer("group_size", -1, low=-1)

    def has(self, checkpoint: Checkpoint, module: str) -> bool:
        """Whether this module is quantised."""
        return f"{module}.qweight" in checkpoint

    def weight(self, checkpoint: Checkpoint, module: str, shape: tuple[int, int]) -> QuantizedWeight:
        """As :meth:`Layout.weight`."""
        rows, inputs = shape
        size = group_size(self.settings, "group_size", self.size, inputs, module)
        groups, held = inputs // size, 32 // self.bits
        self._check_order(checkpoint, module, inputs, size)
        words = checkpoint.read(f"{module}.qweight", (inputs // held, rows), (torch.int32,))
        stored = checkpoint.read(f"{module}.qzeros", (groups, rows // held), (torch.int32,))
        scales = checkpoint.read(f"{module}.scales", (groups, rows)).t().to(torch.float32).contiguous()
        values = packed_bytes(words.t())
        # version 1 keeps 0 as -1, which wraps around to the greatest number: 16 and 256 never occur
        zeros = ((unpacked(stored, self.bits).to(torch.int16) + self.offset) % 2**self.bits).t()
        if self.bits == 8:
            return QuantizedWeight(signed_bytes(values), scales, with_zeros(scales, zeros - 128), 8)
        return QuantizedWeight(values, scales, scales * zeros.float(), 4)

    def _check_order(self, checkpoint: Checkpoint, module: str, inputs: int, size: int) -> None:
        """Refuse inputs sorted by how much they matter. (``desc_act`` alone does not tell: it may have been used with
        groups that stayed in place.)"""
        name = f"{module}.g_idx"
        if name not in checkpoint:
            return
        order = checkpoint.read(name, (inputs,), (torch.int32, torch.int64))
        if not torch.equal(order.long(), torch.arange(inputs) // size):
            raise self.settings.refuse(
                "desc_act",
                f"is not supported where it scatters a group's inputs, as in {module}: use a checkpoint made with "
                "desc_act=False or static_groups=True",
            )
