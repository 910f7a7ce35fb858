"""A safetensors file written one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch

from octavo.errors import WeightsError

_KINDS = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
}
_LENGTH = 8  # bytes that say how long the header is
_ENTRY = 120  # bytes that an entry takes at most, beside its name


class TensorFile:
    """Writes tensors as they come, so that no more than one is ever held; the header, which stands before them, goes
    into room that is kept for it. A context manager; left by an error, the file is not one that can be read.

    Args:
        path: of the file, which must not exist.
        names: of all tensors that may come.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._room = -(-(sum(len(name.encode()) + _ENTRY for name in names) + _ENTRY) // _LENGTH) * _LENGTH
        self._file = path.open("xb")
        self._file.seek(_LENGTH + self._room)
        self._entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._offset = 0

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor.

        Raises:
            WeightsError: its numbers would come to lie where they cannot be read in place.
            OSError: as writing does.
        """
        if self._offset % tensor.itemsize:
            raise WeightsError(f"{name} of {tensor.dtype} cannot be written after tensors of odd sizes")
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(memoryview(data))
        end = self._offset + len(data)
        entry = {"dtype": _KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [self._offset, end]}
        self._entries[name] = entry
        self._offset = end

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                header = json.dumps(self._entries, separators=(",", ":")).encode().ljust(self._room)
                self._file.seek(0)
                self._file.write(self._room.to_bytes(_LENGTH, "little") + header)
