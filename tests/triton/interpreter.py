"""Triton's interpreter, made trustworthy: what it would silently get wrong is either right here or an error.

What upstream's (3.6.0) does with bfloat16 is arithmetic on its bits, and it reads and writes wherever a pointer leads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


def install() -> None:
    """Turn the interpreter on and mend it. Once, before anything imports triton.

    Raises:
        RuntimeError: triton has been imported without it.
    """
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before its interpreter was turned on: run these tests by themselves")
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    object.__setattr__(interpreter.interpreter_builder.options, "debug", True)  # tl.device_assert holds
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)  # hash functions overflow
    _mend_casts(interpreter, builder)
    _refuse_bfloat16_arithmetic(interpreter, builder)
    _mend_arithmetic(interpreter, builder)
    _guard_memory(interpreter, builder)
    _patch_once(interpreter)


def _is_bfloat16(handle: Any) -> bool:
    return str(handle.dtype.scalar) == "bf16"


def _widened(handle: Any) -> np.ndarray:
    """A handle's numbers; bfloat16's as float32."""
    if _is_bfloat16(handle):
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    return np.asarray(handle.data)


def _narrowed(data: np.ndarray, dtype: torch.dtype, bits: torch.dtype) -> np.ndarray:
    """float32 rounded by torch: to nearest even, NaN and infinity kept."""
    return torch.from_numpy(np.array(data, np.float32)).to(dtype).view(bits).numpy()


def _mend_casts(interpreter: Any, builder: Any) -> None:
    import triton.language as tl

    targets = {
        tl.bfloat16: (torch.bfloat16, torch.uint16),
        tl.float8e4nv: (torch.float8_e4m3fn, torch.uint8),
        tl.float8e5: (torch.float8_e5m2, torch.uint8),
    }
    cast, convert = builder.cast_impl, interpreter._convert_float

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        kind = target.scalar
        if tl.bfloat16 not in (source.dtype.scalar, kind):
            return cast(self, source, target)
        wide = _widened(source)
        data = _narrowed(wide, *targets[kind]) if kind in targets else wide.astype(interpreter._get_np_dtype(kind))
        return interpreter.TensorHandle(data, kind)

    def convert_float(data: np.ndarray, source: Any, target: Any, mode: Any) -> np.ndarray:
        if source == tl.float32 and target in targets:
            return _narrowed(data, *targets[target])
        return convert(data, source, target, mode)

    builder.cast_impl = cast_impl
    interpreter._convert_float = convert_float


def _refuse_bfloat16_arithmetic(interpreter: Any, builder: Any) -> None:
    def refusing(name: str, function: Callable) -> Callable:
        def guarded(self: Any, *arguments: Any) -> Any:
            if any(isinstance(each, interpreter.TensorHandle) and _is_bfloat16(each) for each in arguments):
                raise TypeError(f"{name} of bfloat16: the interpreter cannot; widen with .to(tl.float32) first")
            return function(self, *arguments)

        return guarded

    for name in ("binary_op", "unary_op", "create_clampf", "create_fma", "create_rsqrt", "create_erf"):
        setattr(builder, name, refusing(name, getattr(builder, name)))
    for operation in (interpreter.ReduceOps, interpreter.ScanOps):
        apply = operation.apply_impl

        def checked(self: Any, inputs: Any, apply: Callable = apply) -> Any:
            if any(_is_bfloat16(each.handle) for each in inputs):
                raise TypeError("a reduction of bfloat16: the interpreter cannot; widen with .to(tl.float32) first")
            return apply(self, inputs)

        operation.apply_impl = checked


def _mend_arithmetic(interpreter: Any, builder: Any) -> None:
    import triton.language as tl

    dot = builder.create_dot

    def create_dot(self: Any, a: Any, b: Any, total: Any, *options: Any) -> Any:
        if not (_is_bfloat16(a) or _is_bfloat16(b)):
            return dot(self, a, b, total, *options)
        product = np.matmul(_widened(a), _widened(b), dtype=np.float32)
        return interpreter.TensorHandle(product + total.data, total.dtype.scalar)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if z.data.dtype != np.float32:
            return fma(self, x, y, z)
        exact = x.data.astype(np.float64) * y.data.astype(np.float64) + z.data  # rounded once, as a fused one is
        return interpreter.TensorHandle(exact.astype(np.float32), z.dtype.scalar)

    def comparing(function: Callable) -> Callable:
        def compare(self: Any, lhs: Any, rhs: Any) -> Any:
            return interpreter.TensorHandle(function(self, lhs, rhs).data, tl.int1)  # upstream's is of lhs's type

        return compare

    fma = builder.create_fma
    builder.create_dot, builder.create_fma = create_dot, create_fma
    for name in [name for name in dir(builder) if name.startswith(("create_icmp", "create_fcmp"))]:
        setattr(builder, name, comparing(getattr(builder, name)))
    # those of a GPU that are not told to hand NaN on
    builder.create_maxnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmax)
    builder.create_minnumf = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.fmin)


def _guard_memory(interpreter: Any, builder: Any) -> None:
    """Loads and stores must stay within the tensors that the running kernel was given."""
    starts, ends = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    prepare = interpreter.GridExecutor._init_args_hst
    load, store = builder.create_masked_load, builder.create_masked_store

    def prepared(self: Any, arguments: Any, keywords: Any) -> Any:
        nonlocal starts, ends
        here = prepare(self, arguments, keywords)
        storages = [each.untyped_storage() for each in (*here[0], *here[1].values()) if isinstance(each, torch.Tensor)]
        extents = sorted({(each.data_ptr(), each.data_ptr() + each.nbytes()) for each in storages})
        starts, ends = np.array(extents, np.uint64).reshape(-1, 2).T
        return here

    def check(what: str, pointers: Any, mask: Any) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        active = addresses[np.broadcast_to(mask.data.astype(bool), addresses.shape)]
        if not active.size:
            return
        index = np.searchsorted(starts, active, side="right") - 1
        if (index < 0).any() or (active + np.uint64(size) > ends[index]).any():
            raise IndexError(f"a {what} outside of every tensor that the kernel was given")

    def guarded_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        check("load", pointers, mask)
        return load(self, pointers, mask, *rest, **options)

    def guarded_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check("store", pointers, mask)
        return store(self, pointers, value, mask, *rest)

    interpreter.GridExecutor._init_args_hst = prepared
    builder.create_masked_load, builder.create_masked_store = guarded_load, guarded_store


def _patch_once(interpreter: Any) -> None:
    """triton.language is turned into the interpreter's once a launch, not once more in each function it calls: that
    takes most of a small kernel's time, and wraps what has been wrapped."""
    import triton.language as tl

    patch, everything = interpreter._patch_lang, SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    is_patched = False

    def patch_lang(function: Any) -> Any:
        nonlocal is_patched
        if is_patched:
            return interpreter._LangPatchScope()
        is_patched, scope = True, patch(everything)
        restore = scope.restore

        def restored() -> None:
            nonlocal is_patched
            is_patched = False
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patch_lang


@contextmanager
def backwards() -> Iterator[None]:
    """Within, the programs of a grid run last to first: results may not depend on their order."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    forwards = builder.set_grid_idx

    def set_grid_idx(self: Any, *index: int) -> None:
        forwards(self, *(size - 1 - each for size, each in zip(self.grid_dim, index, strict=True)))

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = forwards
