"""How this backend's code is compiled, and where the results are kept.

A *kernel* is a C function ``void(int64 address)`` that Numba compiles: it reads its arguments from the words at
``address`` (see ``launch.py``) and takes tasks from a shared counter until none is left, so that any number of threads
may run it at once. It is compiled the first time it is used, or by :func:`warm_up`, once for all dtypes and shapes.

Compiled code is kept in ``<cache>/octavo/jit-<hash>``, an object file for each kernel. The hash is over every source
file of ``octavo.kernels``, the versions of Numba and llvmlite, and the CPU: a change to any of them starts a new
folder, so stale code is never run. ``<cache>`` is ``$OCTAVO_CACHE_DIR``, else ``$XDG_CACHE_HOME/octavo``, else
``~/.cache/octavo``. Numba is imported only where something is to be compiled: to import it takes longer than to load
all kernels.

With ``NUMBA_DISABLE_JIT=1`` kernels run as plain Python, on the pure-Python forms of the primitives.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import logging
import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm

from octavo.kernels.cpu.objects import CODE, load_object, save_object
from octavo.user_cache import user_cache_dir

logger = logging.getLogger(__name__)

DISABLED = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Whether kernels run as plain Python."""

Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def host_features() -> frozenset[str]:
    """LLVM's names of what this CPU can do, or of what Numba is told to assume (``NUMBA_CPU_FEATURES``)."""
    told = os.environ.get("NUMBA_CPU_FEATURES")
    if told is not None:
        return frozenset(name[1:] for name in told.split(",") if name.startswith("+"))
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@functools.cache
def has_matrix_unit() -> bool:
    """Whether this CPU multiplies tiles of bfloat16 (Intel's AMX) and the system lets this process do it: Linux grants
    the state of tiles on request, to all threads of a process."""
    if DISABLED or not {"amx-tile", "amx-bf16"} <= host_features():
        return False
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return int(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)) == 0


@functools.cache
def has_int8_matrix_unit() -> bool:
    """Whether that unit multiplies tiles of bytes too."""
    return "amx-int8" in host_features() and has_matrix_unit()


_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
"""The system call, what it is asked, and the number of the state of tiles among the processor's."""


@functools.cache
def cache_key() -> str:
    """A hash of all that decides what the compiled code is."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for source in sorted(root.rglob("*.py")):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    unit = f"matrix unit: {has_matrix_unit()}"
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    for part in (version("numba"), version("llvmlite"), name, unit, *sorted(host_features())):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


@functools.cache
def cache_dir() -> Path | None:
    """The folder of compiled code, made if need be; None where none can be written (then each start compiles)."""
    folder = user_cache_dir() / f"jit-{cache_key()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        logger.warning(
            "compiled kernels cannot be kept in %s (%s): set OCTAVO_CACHE_DIR to a writable folder", folder, error
        )
        return None
    return folder if os.access(folder, os.W_OK) else None


class Compiled:
    """A function that kernels call, in a form of its own for the compiler: see ``compiler.py``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


def device(function: Function) -> Function:
    """A function that kernels call: compiled into each of them."""
    return function if DISABLED else cast(Function, Compiled(function))


class Kernel:
    """A kernel, compiled when first asked for.

    Args:
        function: takes the address of its argument words, an int.
    """

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function
        self.name = function.__name__

    @property
    def is_cached(self) -> bool:
        """Whether its compiled code lies in the cache folder."""
        folder = cache_dir()
        return folder is not None and load_object(self._path(folder)) is not None

    @functools.cached_property
    def address(self) -> int:
        """The function's address."""
        folder = cache_dir()
        held = None if folder is None else load_object(self._path(folder))
        if held is None:
            compiler = importlib.import_module("octavo.kernels.cpu.compiler")  # the only one that needs Numba
            held = compiler.compile_kernel(self.function, self.symbol)
            if folder is not None:
                save_object(self._path(folder), held)
        return CODE.add(held, self.symbol)

    @property
    def symbol(self) -> str:
        """What the function is called in its compiled code."""
        return f"octavo_kernel_{self.name}"

    @functools.cached_property
    def call(self) -> Callable[[int], Any]:
        """Runs it on the calling thread, which gives up the interpreter lock meanwhile."""
        if DISABLED:
            return self.function
        return ctypes.CFUNCTYPE(None, ctypes.c_int64)(self.address)

    def _path(self, folder: Path) -> Path:
        return folder / f"{self.name}.o"


KERNELS: list[Kernel] = []
"""Every kernel of this backend, in the order of definition."""


def kernel(function: Callable[[int], None]) -> Kernel:
    """Make a kernel of a function of the address of its arguments."""
    made = Kernel(function)
    KERNELS.append(made)
    return made


def warm_up(progress: Callable[[str, int, int], None] | None = None) -> None:
    """Compile every kernel now, or load it from the disk cache.

    Args:
        progress: called with ("compiling NAME", i, total) before the i-th of ``total`` kernels is compiled; not called
            for kernels that the disk cache holds.
    """
    if DISABLED:
        return
    missing = [entry for entry in KERNELS if "address" not in entry.__dict__ and not entry.is_cached]
    for i, entry in enumerate(missing):
        if progress is not None:
            progress(f"compiling {entry.name}", i, len(missing))
        entry.call  # noqa: B018
    for entry in KERNELS:
        entry.call  # noqa: B018
