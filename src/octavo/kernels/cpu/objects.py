"""Compiled code: kept in files, and loaded into this process.

An object file is what LLVM's compiler makes of a kernel, before addresses are filled in. LLVM's own linker loads it in
a millisecond, without the compiler that made it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import threading
from pathlib import Path

import llvmlite.binding as llvm

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32
_LONG_WAYS = ("arm64", "aarch64")
"""Processors whose code reaches its data over short ways only, so that LLVM must be told to keep the two together."""


def load_object(path: Path) -> bytes | None:
    """The object code in a file; None where there is none, or it is damaged."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    digest, code = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def save_object(path: Path, code: bytes) -> None:
    """Keep object code in a file, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    try:
        draft.write_bytes(hashlib.sha256(code).digest() + code)
        draft.replace(path)
    except OSError as error:
        logger.warning("compiled code cannot be kept in %s: %s", path, error)


class LoadedCode:
    """The object code of this process."""

    def __init__(self) -> None:
        self._engine: llvm.ExecutionEngine | None = None
        self._lock = threading.Lock()

    def add(self, code: bytes, symbol: str) -> int:
        """Load object code; returns the address of one of its functions."""
        with self._lock:
            if self._engine is None:
                self._engine = _engine()
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
            self._engine.finalize_object()
            return int(self._engine.get_function_address(symbol))


def _engine() -> llvm.ExecutionEngine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly("")
    module.triple = llvm.get_process_triple()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(jit=True)
    return llvm.create_mcjit_compiler(module, machine, use_lmm=platform.machine() in _LONG_WAYS)


CODE = LoadedCode()
"""Loaded code stays as long as the process."""
