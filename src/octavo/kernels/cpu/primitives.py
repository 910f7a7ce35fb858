"""What kernels are made of, and the table of all of it.

A primitive is written twice: as LLVM code, compiled into the kernels that call it, and as plain Python, which tests
compare the first with and which runs where the compiler is disabled. Arguments are addresses and sizes as 64-bit
integers; ``f32`` rows lie in scratch memory, other rows have one of the dtype codes of ``emitter.py``.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from octavo.kernels.cpu.emitter import (
    BF16,
    F16,
    F32,
    FLOAT,
    I64,
    INT8,
    ITEM_SIZE,
    Emitter,
)
from octavo.kernels.cpu.jit import DISABLED

_TYPES: dict[str, tuple[str, ir.Type]] = {
    "i": ("int64", I64),
    "f": ("float32", FLOAT),
    "d": ("float64", ir.DoubleType()),
    "v": ("void", ir.VoidType()),
}
"""Numba's name of each type, and LLVM's."""


class Primitive:
    """The two forms of one operation."""

    def __init__(self, signature: str, python: Callable[..., Any], emit: Callable[..., Any]) -> None:
        self.signature = signature
        self.python = python
        self.emit = emit
        self.name = python.__name__

    def define(self, module: ir.Module) -> ir.Function:
        """The operation as a function of ``module``."""
        name = f"octavo_{self.name}"
        known = module.globals.get(name)
        if known is not None:
            return known
        result, *arguments = (_TYPES[letter][1] for letter in self.signature)
        function = ir.Function(module, ir.FunctionType(result, arguments), name)
        function.linkage = "linkonce_odr"
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        value = self.emit(Emitter(builder), *function.args)
        if value is None:
            builder.ret_void()
        else:
            builder.ret(value)
        return function

    def typed(self) -> Any:
        """The operation as Numba calls it."""
        from numba import types
        from numba.extending import intrinsic

        result, *arguments = (getattr(types, _TYPES[letter][0]) for letter in self.signature)
        signature = result(*arguments)

        def codegen(context: Any, builder: Any, _: Any, values: Any) -> Any:
            returned = builder.call(self.define(builder.module), values)
            return context.get_dummy_value() if self.signature[0] == "v" else returned

        def typing(_: Any, *__: Any) -> Any:
            return signature, codegen

        typing.__name__ = self.name
        # Numba goes by the signature it sees: the typing context, then one name for each argument
        names = ["context", *(f"argument_{i}" for i in range(len(arguments)))]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        typing.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        return intrinsic(typing)


PRIMITIVES: dict[str, Primitive] = {}


def primitive(signature: str, python: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a primitive of its two forms; ``signature`` is the result's letter, then the arguments': i, f, d or v."""

    def made(emit: Callable[..., Any]) -> Any:
        entry = Primitive(signature, python, emit)
        PRIMITIVES[entry.name] = entry
        return python if DISABLED else entry

    return made


# ---------------------------------------------------------------- memory as arrays, for the Python forms


_NUMPY: dict[int, Any] = {F32: np.float32, BF16: np.uint16, F16: np.float16, INT8: np.int8}


def row(dtype: int, address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` items at ``address``; bfloat16 as its bits."""
    size = max(count, 0) * ITEM_SIZE[dtype]
    memory: Any = (ctypes.c_char * size).from_address(address) if size else bytearray()
    return np.frombuffer(memory, _NUMPY[dtype])


def floats(address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` floats at ``address``."""
    return row(F32, address, count)


def get(dtype: int, address: int, count: int) -> np.ndarray[Any, Any]:
    """``count`` items at ``address`` as floats."""
    items = row(dtype, address, count)
    if dtype == BF16:
        return (items.astype(np.uint32) << 16).view(np.float32)
    return items.astype(np.float32)


def put(dtype: int, address: int, values: np.ndarray[Any, Any]) -> None:
    """Store floats at ``address``, rounded to nearest even."""
    target = row(dtype, address, len(values))
    if dtype != BF16:
        with np.errstate(over="ignore"):
            target[:] = values
        return
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + ((bits >> 16) & 1) + np.uint32(0x7FFF)) >> 16
    target[:] = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
