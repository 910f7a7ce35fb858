"""What a GGUF file says of itself, before its tensors' data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.errors import UnsupportedModelError, WeightsError


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor: its type's name as ggml has it ("Q4_K"), its shape, outputs first, and where its bytes begin."""

    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata and the table of tensors."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]

    @classmethod
    def read(cls, path: Path) -> Header:
        """Read a file's header.

        Raises:
            UnsupportedModelError: the gguf package is not installed, or the file is one part of several.
            WeightsError: the file is damaged, or no GGUF file.
        """
        try:
            import gguf
        except ImportError:
            raise UnsupportedModelError(
                f"{path}: GGUF files are read by the gguf package: pip install 'octavo[gguf]'"
            ) from None
        try:
            reader = gguf.GGUFReader(path)
            metadata = {name: field.contents() for name, field in reader.fields.items()}
            tensors = {
                tensor.name: Stored(
                    tensor.tensor_type.name,
                    tuple(int(size) for size in reversed(tensor.shape)),
                    int(tensor.data_offset),
                    int(tensor.n_bytes),
                )
                for tensor in reader.tensors
            }
        except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError, OverflowError) as error:
            raise WeightsError(f"{path} is truncated or not a GGUF file ({error}): fetch or export it again") from error
        if metadata.get("split.count", 1) > 1:
            raise UnsupportedModelError(
                f"{path} is one of {metadata['split.count']} parts: join them with llama-gguf-split --merge"
            )
        return cls(path, metadata, tensors)

    @property
    def architecture(self) -> str:
        """The family's name, as llama.cpp has it."""
        return str(self.metadata.get("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        """A field of the architecture's own: ``get("block_count")`` is ``llama.block_count``."""
        return self.metadata.get(f"{self.architecture}.{name}", default)

    def need(self, name: str) -> Any:
        """A field that every model has.

        Raises:
            UnsupportedModelError: it is missing.
        """
        value = self.get(name)
        if value is None:
            raise UnsupportedModelError(f"{self.path}: {self.architecture}.{name} is missing")
        return value

    def refuse(self, name: str, why: str) -> UnsupportedModelError:
        """The error that refuses a field's value."""
        value = self.metadata.get(name, self.get(name))
        return UnsupportedModelError(f"{self.path}: {name}={value!r} {why}")
