"""What a call of a kernel would run on a GPU that is not here: compiled as the call's own arguments specialise it."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from octavo.kernels.triton import launch

ARCHITECTURES = (80, 89, 90)
SHARED_LIMITS = {80: 166_912, 89: 101_376, 90: 232_448}
"""Bytes of shared memory that one program may have."""

_BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class AbsentGpu:
    """Triton's driver where there is none: it knows what to compile for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, as compiled."""

    name: str
    architecture: int
    grid: tuple[int, ...]
    compiled: Any  #: Triton's CompiledKernel

    @property
    def shared(self) -> int:
        """Bytes of shared memory a program."""
        return int(self.compiled.metadata.shared)

    @property
    def num_warps(self) -> int:
        return int(self.compiled.metadata.num_warps)

    @cached_property
    def _report(self) -> str:
        suffix = "a" if self.architecture >= 90 else ""
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(self.compiled.asm["ptx"])
            file.flush()
            target = ["--gpu-name", f"sm_{self.architecture}{suffix}", "-v", file.name, "-o", "/dev/null"]
            return subprocess.run([_BINARIES / "ptxas", *target], capture_output=True, text=True, check=True).stderr

    @property
    def registers(self) -> int:
        """Registers a thread."""
        return int(re.search(r"Used (\d+) registers", self._report)[1])

    @property
    def spills(self) -> int:
        """Bytes that a thread keeps in local memory because registers were short."""
        stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", self._report).groups()
        return int(stores) + int(loads)

    @cached_property
    def instructions(self) -> Counter[str]:
        """How often each machine instruction stands in the kernel, by full name ("LDG.E.128", "HMMA.16816.F32")."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.compiled.asm["cubin"])
            file.flush()
            listing = subprocess.run(
                [_BINARIES / "nvdisasm", "-c", file.name], capture_output=True, text=True, check=True
            ).stdout
        return Counter(re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)", listing, re.MULTILINE))

    def count(self, prefix: str, containing: str = "") -> int:
        """Instructions whose name begins with ``prefix`` and holds ``containing``: ``count("LDG", ".128")``."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix) and containing in name)

    def check(self) -> None:
        """No spills, and no more shared memory than there is."""
        assert self.spills == 0, f"{self}: {self.spills} bytes of spills"
        assert self.shared <= SHARED_LIMITS[self.architecture], f"{self}: {self.shared} bytes of shared memory"

    def __str__(self) -> str:
        return f"{self.name} on sm_{self.architecture}, {self.num_warps} warps, {self.registers} registers"


@contextmanager
def recorded(architecture: int) -> Iterator[list[Launch]]:
    """Within, launches of Triton kernels are compiled for ``architecture`` and listed, not run. Tensors lie on the CPU
    and what is in them does not matter."""
    launches: list[Launch] = []
    run, before = JITFunction.run, driver._active

    def compiling(self: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = run(self, *arguments, grid=grid, warmup=True, **options)
        launches.append(Launch(self.__name__, architecture, tuple(grid), compiled))
        return compiled

    device = torch.device("cpu")
    known = launch._ARCHITECTURES.get(device)
    launch._ARCHITECTURES[device] = architecture
    JITFunction.run = compiling
    short, launch._takes_short_way = launch._takes_short_way, False
    driver.set_active(AbsentGpu(architecture))
    try:
        yield launches
    finally:
        JITFunction.run = run
        launch._takes_short_way = short
        driver._active = before
        if known is None:
            del launch._ARCHITECTURES[device]
        else:
            launch._ARCHITECTURES[device] = known


def compiled(architecture: int, call: Callable[[], Any]) -> list[Launch]:
    """The launches of one call, compiled for ``architecture``, checked for spills and shared memory."""
    with recorded(architecture) as launches:
        call()
    assert launches, "nothing was launched"
    for each in launches:
        each.check()
    return launches
