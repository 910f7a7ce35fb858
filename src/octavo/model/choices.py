"""What was measured before: which kind of product serves a weight's shape best on this machine.

A measurement takes a fifth of a second for each shape, a good part of a quick start. So what it found is kept in
``<cache>/linear/<hash>.json`` (for ``<cache>`` see :mod:`octavo.kernels.cpu.jit`), the hash being over all that it may
hang on: the machine, the versions and sources, the dtype, the threads. The file is for people too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from octavo.kernels.cpu.jit import cache_key
from octavo.user_cache import user_cache_dir

logger = logging.getLogger(__name__)

_ONEDNN = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE")
"""What people tell oneDNN by the environment."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for a shape, and why."""

    kind: str
    rows: tuple[int, ...]  #: sizes of batch that were measured
    seconds: Mapping[str, tuple[float, ...]]  #: of each kind, for each of them

    def __str__(self) -> str:
        figures = "; ".join(
            f"{kind} {'/'.join(f'{each * 1e6:.0f}' for each in times)}" for kind, times in self.seconds.items()
        )
        return f"{self.kind} (microseconds at {'/'.join(map(str, self.rows))} rows: {figures})"


class LinearChoices:
    """The choices made before under the same circumstances, by shape ("3072x576").

    Args:
        circumstances: whatever else a choice hangs on.
        folder: where they are kept [the user's cache].
    """

    def __init__(self, circumstances: Mapping[str, str], folder: Path | None = None) -> None:
        self._circumstances = dict(sorted(circumstances.items()))
        digest = hashlib.sha256(json.dumps(self._circumstances).encode()).hexdigest()[:16]
        self.path = (user_cache_dir() / "linear" if folder is None else folder) / f"{digest}.json"

    @classmethod
    def here(cls, backend: str, dtype: torch.dtype, threads: int, folder: Path | None = None) -> LinearChoices:
        """Those of this machine and these versions, for a kernel backend, a dtype of weights, a number of threads."""
        circumstances = {
            "kernels": f"{backend} {cache_key()}",
            "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            "threads": str(threads),
            "dtype": str(dtype).removeprefix("torch."),
        }
        return cls(circumstances | {name: os.environ[name] for name in _ONEDNN if name in os.environ}, folder)

    def read(self) -> dict[str, Choice]:
        """All of them. A file that cannot be read holds none."""
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))["choices"]
            return {
                shape: Choice(
                    str(entry["kind"]),
                    tuple(int(count) for count in entry["rows"]),
                    {kind: tuple(float(each) for each in times) for kind, times in entry["seconds"].items()},
                )
                for shape, entry in held.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be used (%s): products are measured again", self.path, error)
            return {}

    def find(self, shape: str, kinds: tuple[str, ...], rows: tuple[int, ...]) -> Choice | None:
        """What was chosen for a shape, if it was among the same kinds at the same sizes of batch."""
        choice = self.read().get(shape)
        known = choice is not None and choice.kind in kinds and choice.rows == rows
        return choice if choice is not None and known and tuple(choice.seconds) == kinds else None

    def keep(self, shape: str, choice: Choice) -> None:
        """Remember a choice. Where nothing can be written, it is measured at each start."""
        held = self.read() | {shape: choice}
        entries = {
            name: {"kind": each.kind, "rows": each.rows, "seconds": dict(each.seconds)} for name, each in held.items()
        }
        text = json.dumps({"circumstances": self._circumstances, "choices": entries}, indent=1)
        draft = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(text, encoding="utf-8")
            draft.replace(self.path)
        except OSError as error:
            logger.warning("what was measured cannot be kept in %s: %s", self.path, error)
