"""The weights of a GGUF file, read where they lie, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from octavo.errors import ModelNotFoundError, UnsupportedModelError, WeightsError
from octavo.gguf.folder import TENSORS_FILE
from octavo.hub import read_json
from octavo.model.config_file import ConfigFile
from octavo.model.formats.ggml_blocks import BLOCKS
from octavo.model.formats.weights import Weight
from octavo.model.quantized import QuantizedWeight

_FULL = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_AT_ONCE = 2**22  # numbers unpacked at a time: what that takes stays small beside what is kept


class GgufWeights:
    """A GGUF file, by the table in the folder that stands for it (see :mod:`octavo.gguf.folder`).

    Args:
        folder: that folder.
        settings: config.json's quantization_config, which names the file.

    Raises:
        ModelNotFoundError: the file is gone.
        UnsupportedModelError: it holds a kind of blocks that Octavo has no arithmetic for.
    """

    def __init__(self, folder: Path, settings: ConfigFile) -> None:
        self.path = Path(settings.text("file"))
        if not self.path.is_file():
            raise ModelNotFoundError(f"{self.path} is gone, which {folder} stands for: name the GGUF file itself")
        self._table: dict[str, dict[str, Any]] = read_json(folder / TENSORS_FILE)
        known = _FULL.keys() | BLOCKS.keys()
        for name, entry in self._table.items():
            if entry["kind"] not in known:
                raise UnsupportedModelError(
                    f"{self.path}: {name} is of {entry['kind']}, which is not supported: use a file of "
                    f"{', '.join(BLOCKS)} (Q4_K_M and Q8_0 are made of these), F16 or BF16"
                )
        self._data = np.memmap(self.path, np.uint8, "c")  # written to by nobody; torch takes no read-only array
        self._unread = dict.fromkeys(self._table)
        self.notes: list[str] = []

    @property
    def unread(self) -> list[str]:
        """The tensors that nobody has asked for."""
        return list(self._unread)

    def __contains__(self, name: str) -> bool:
        return name in self._table

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """As :meth:`Weights.read`; a quantised one is widened."""
        found = self._found(name, shape)
        tensor = found.dequantized() if isinstance(found, QuantizedWeight) else found
        plus = self._table[name].get("plus", 0)
        return tensor.float() - plus if plus else tensor

    def weight(self, module: str, shape: tuple[int, int]) -> Weight:
        """As :meth:`Weights.weight`."""
        return self._found(f"{module}.weight", shape)

    def _found(self, name: str, shape: tuple[int, ...]) -> Weight:
        entry = self._entry(name, shape)
        data = torch.from_numpy(self._data[entry["offset"] : entry["offset"] + entry["nbytes"]])
        self._unread.pop(name, None)
        if len(data) != entry["nbytes"]:
            raise WeightsError(f"{self.path} is truncated: it ends before the data of {name!r}; fetch it again")
        if entry["kind"] in _FULL:
            found: Weight = data.view(_FULL[entry["kind"]]).reshape(shape)
        else:
            found = self._decoded(entry["kind"], data, shape)
        if "heads" not in entry:
            return found
        order = _halves(shape[0], entry["heads"])
        return found[order] if isinstance(found, torch.Tensor) else found.rows(order)

    def _entry(self, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        if name not in self._table:
            raise WeightsError(f"{self.path} has no tensor for {name!r}, which its metadata calls for")
        entry = self._table[name]
        if tuple(entry["shape"]) != shape:
            given = tuple(entry["shape"])
            raise WeightsError(
                f"{self.path}: the tensor for {name!r} has shape {given}, but the metadata means {shape}"
            )
        return entry

    def _decoded(self, kind: str, data: torch.Tensor, shape: tuple[int, ...]) -> QuantizedWeight:
        block = BLOCKS[kind]
        blocks = data.reshape(shape[0], -1, block.nbytes)
        if not block.exact:
            note = f"{kind} is computed with in 8 bits and groups of 32, to which its numbers were rounded again"
            if note not in self.notes:
                self.notes.append(note)
        step = max(1, _AT_ONCE // (blocks.shape[1] * block.numbers))
        parts = [block.decode(blocks[start : start + step]) for start in range(0, shape[0], step)]
        return parts[0] if len(parts) == 1 else QuantizedWeight.stack(parts)


def _halves(rows: int, heads: int) -> torch.Tensor:
    """For each row of query or key, where llama.cpp's converter put it: it has the two halves of a head, which are
    rotated together, take turns."""
    return torch.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
