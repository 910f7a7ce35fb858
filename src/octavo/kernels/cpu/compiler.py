"""From a kernel's Python function to object code, by Numba. Imported only when something is to be compiled.

Functions marked by ``jit.device`` and ``primitives.primitive`` are looked up by name in the module of the function that
calls them, as everything in Python is. For the compiler each function is copied with globals of its own, in which those
names mean what Numba understands.
"""

from __future__ import annotations

import types as python
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from octavo.kernels.cpu.jit import Compiled
from octavo.kernels.cpu.primitives import Primitive


@cache
def _understood(marked: Compiled | Primitive) -> Any:
    """What Numba takes for a marked function."""
    if isinstance(marked, Primitive):
        return marked.typed()
    return numba.njit(error_model="numpy", nogil=True)(_with_understood(marked.function))


def _resolved(value: Any) -> Any:
    return _understood(value) if isinstance(value, Compiled | Primitive) else value


def _with_understood(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function that finds, in place of marked functions, what Numba takes for them."""
    assert isinstance(function, python.FunctionType)
    known = function.__globals__
    names = {name: _resolved(known[name]) for name in function.__code__.co_names if name in known}
    cells = tuple(python.CellType(_resolved(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = python.FunctionType(
        function.__code__, {**known, **names}, function.__name__, function.__defaults__, cells or None
    )
    copy.__annotations__, copy.__qualname__ = function.__annotations__, function.__qualname__
    return copy


def compile_kernel(function: Callable[[int], None], symbol: str) -> bytes:
    """The object code of a function ``void symbol(int64)``.

    A kernel raises nothing. If one does, for a mistake of its own such as a range of step 0, the process ends.

    Raises:
        RuntimeError: its code needs a function that this process has not.
    """
    target = registry.cpu_target
    target.typing_context.refresh()
    target.target_context.refresh()
    flags = compiler.Flags()
    target.options.parse_as_flags(flags, {"nopython": True, "error_model": "numpy"})
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    arguments = (types.int64,)
    with global_compiler_lock:
        made = compiler.compile_extra(
            target.typing_context,
            target.target_context,
            _with_understood(function),
            args=arguments,
            return_type=types.void,
            flags=flags,
            locals={},
        )
        _add_entry(target.target_context, made, arguments, symbol)
        made.library.finalize()
        module = llvm.parse_assembly(made.library.get_llvm_str())
        for needed in module.functions:
            if (
                needed.is_declaration
                and not needed.name.startswith("llvm.")
                and not llvm.address_of_symbol(needed.name)
            ):
                raise RuntimeError(f"the kernel {function.__name__} calls {needed.name}, which is nowhere to be found")
        hide_all_but(module, symbol)
        code: bytes = target.target_context.codegen()._tm.emit_object(module)
    return code


def hide_all_but(module: llvm.ModuleRef, symbol: str) -> None:
    """Keep a module's names to itself, except for one function.

    Numba numbers functions in the order in which a process meets them, so names that two processes gave may be the same
    for different functions; of those that are not hidden, the linker would take the first for both.
    """
    for defined in (*module.functions, *module.global_variables):
        if not defined.is_declaration and defined.name != symbol and not defined.name.startswith("llvm."):
            defined.linkage = "internal"


def _add_entry(context: Any, made: Any, arguments: tuple[Any, ...], symbol: str) -> None:
    """Add the C function that calls Numba's."""
    module = context.create_module(symbol)
    kind = context.call_conv.get_function_type(types.void, arguments)
    inner = ir.Function(module, kind, made.fndesc.llvm_func_name)
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)]), symbol)
    builder = ir.IRBuilder(entry.append_basic_block("entry"))
    status, _ = context.call_conv.call_function(builder, inner, types.void, arguments, entry.args)
    with builder.if_then(status.is_error, likely=False):
        builder.call(module.declare_intrinsic("llvm.trap", (), ir.FunctionType(ir.VoidType(), [])), [])
    builder.ret_void()
    made.library.add_ir_module(module)
