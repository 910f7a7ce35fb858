"""The tensors of one safetensors file, mapped into memory, and let go of again.

A page of a mapped file that was read counts as this process's memory until the system wants it back. While a model is
loaded each page is read once, to be copied: beside the finished weights the whole file would be held. So what was
mapped is let go of as loading goes on. A tensor that is still in use loses nothing: its pages come back from the
system's cache of the file.
"""

from __future__ import annotations

import json
import math
import mmap
from pathlib import Path
from typing import Any

import torch

MOST_MAPPED = 2**26
"""Bytes that may have been read before what is mapped is let go of."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class MappedFile:
    """The tensors of a safetensors file.

    Args:
        path: a file whose header is known to be sound.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # torch wants memory that may be written
        length = int.from_bytes(self._map[:8], "little")
        self._start = 8 + length
        self._entries: dict[str, Any] = json.loads(self._map[8 : self._start])
        self._read = 0

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, as stored: copy it, do not write to it.

        Raises:
            ValueError: it is of a type that this build of PyTorch has not.
        """
        entry = self._entries[name]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise ValueError(f"it is of type {entry['dtype']}")
        count = math.prod(entry["shape"])
        if not count:
            return torch.empty(entry["shape"], dtype=dtype)
        size = count * dtype.itemsize
        if self._read + size > MOST_MAPPED:
            self.let_go()
        self._read += size
        start = self._start + int(entry["data_offsets"][0])
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start).view(entry["shape"])

    def let_go(self) -> None:
        """Give the memory of what was read back to the system."""
        self._read = 0
        if hasattr(self._map, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
