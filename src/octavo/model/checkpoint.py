"""The tensors of a safetensors checkpoint, one file or several, read one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from octavo.errors import ModelNotFoundError, UnsafeWeightsError, WeightsError
from octavo.hub import read_json
from octavo.model.mapped_file import MappedFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


class Checkpoint:
    """Opens every file's header at once (so that a damaged file is found before anything is built), maps the data and
    reads a tensor when it is asked for.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the shards it names, or one .safetensors
            file of another name.

    Raises:
        ModelNotFoundError: there are no weights at all.
        UnsafeWeightsError: there are only pickled weights.
        WeightsError: a file is truncated or no safetensors file, or the index names what is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, MappedFile] = {}  # file name -> open file
        self._homes: dict[str, str] = {}  # tensor name -> file name
        self._read: set[str] = set()
        if (folder / SINGLE_FILE).is_file():
            self._add_file(SINGLE_FILE)
        elif (folder / INDEX_FILE).is_file():
            self._add_shards()
        else:
            self._add_file(self._only_file())

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._homes)

    @property
    def unread(self) -> list[str]:
        """The names of tensors that nobody has asked for."""
        return [name for name in self._homes if name not in self._read]

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def read(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = DTYPES) -> torch.Tensor:
        """A tensor as stored, mapped from the file: copy it, do not write to it.

        Raises:
            WeightsError: it is missing, or not of ``shape``, or of none of ``dtypes``.
        """
        tensor, path = self._tensor(name), self.folder / self._homes[name]
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, but config.json means {shape}"
            )
        if tensor.dtype not in dtypes:
            raise WeightsError(
                f"{path}: tensor {name!r} is of {_name(tensor.dtype)}; only {', '.join(map(_name, dtypes))} is "
                f"supported{' for weights: use the unquantised checkpoint' if dtypes == DTYPES else ' for it'}"
            )
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape.

        Raises:
            WeightsError: it is missing.
        """
        return tuple(self._tensor(name).shape)

    def nbytes(self, name: str) -> int:
        """A tensor's size.

        Raises:
            WeightsError: it is missing.
        """
        return self._tensor(name).nbytes

    def is_zero_bias(self, name: str) -> bool:
        """Whether it is a bias that adds nothing: some tools write one for every module."""
        return name.endswith(".bias") and not bool(self._tensor(name).any())

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._homes:
            raise WeightsError(f"{self._described()} has no tensor {name!r}, which its config.json calls for")
        self._read.add(name)
        try:
            tensor = self._files[self._homes[name]].tensor(name)
        except (RuntimeError, ValueError) as error:
            raise WeightsError(f"{self.folder / self._homes[name]}: tensor {name!r} cannot be read: {error}") from error
        return tensor

    def _described(self) -> str:
        return str(self.folder / next(iter(self._files))) if len(self._files) == 1 else f"{self.folder / INDEX_FILE}"

    def _add_file(self, file_name: str) -> None:
        path = self.folder / file_name
        try:
            with safe_open(path, framework="pt", device="cpu") as checked:
                names: list[str] = list(checked.keys())
            self._files[file_name] = MappedFile(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise WeightsError(
                f"{path} is truncated or not a safetensors file ({error}): fetch or export it again"
            ) from error
        for name in names:
            self._homes.setdefault(name, file_name)

    def _add_shards(self) -> None:
        path = self.folder / INDEX_FILE
        homes = read_json(path).get("weight_map")
        if not isinstance(homes, dict) or not homes:
            raise WeightsError(f"{path}: weight_map must be an object that maps tensor names to files")
        for name, file_name in homes.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name:
                raise WeightsError(f"{path}: weight_map maps {name!r} to {file_name!r}, which is no file of the folder")
            if not (self.folder / file_name).is_file():
                raise WeightsError(f"{path} names the shard {file_name}, which is missing: fetch it again")
        for file_name in dict.fromkeys(homes.values()):
            self._add_file(file_name)
        for name, file_name in homes.items():
            if self._homes.get(name) is None:
                raise WeightsError(f"{path} places tensor {name!r} in {file_name}, which does not have it")

    def _only_file(self) -> str:
        found = sorted(self.folder.glob("*.safetensors"))
        if len(found) == 1:
            return found[0].name
        if found:
            raise WeightsError(
                f"{self.folder} has {len(found)} safetensors files but neither {SINGLE_FILE} nor {INDEX_FILE}: "
                "it is not clear which belong together"
            )
        pickles = sorted(path.name for pattern in _PICKLES for path in self.folder.glob(pattern))
        if pickles:
            raise UnsafeWeightsError(
                f"{self.folder} has only pickled weights ({pickles[0]}), which could run code when loaded; convert "
                'them where you trust them: python -c "from transformers import AutoModelForCausalLM as M; '
                f"M.from_pretrained('{self.folder}').save_pretrained('{self.folder}')\""
            )
        raise ModelNotFoundError(f"{self.folder} has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
