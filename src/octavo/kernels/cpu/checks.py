"""What kernels require of tensors, checked before their addresses are taken: a wrong address would end the process.

Each look at a tensor costs a tenth of a microsecond or more, and a small model's step makes hundreds of calls. So each
check looks as little as it can, and what is the same from call to call is remembered.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import torch

from octavo.kernels.cpu.emitter import BF16, F16, F32, INT8, ITEM_SIZE
from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized_kv import Kv, QuantizedKv

CODES = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}

Looked = TypeVar("Looked", bound=Kv)
Described = TypeVar("Described")


def _refuse(name: str, tensor: torch.Tensor, wanted: str) -> NoReturn:
    raise ValueError(
        f"{name} is {tuple(tensor.shape)} of {tensor.dtype} on {tensor.device} with strides {tensor.stride()}: "
        f"it must be {wanted}"
    )


def code(name: str, tensor: torch.Tensor) -> int:
    """The code of a tensor's dtype.

    Raises:
        ValueError: it is not float32, bfloat16 or float16, or not in this machine's memory.
    """
    known = CODES.get(tensor.dtype)
    if known is None or not tensor.is_cpu:
        _refuse(name, tensor, "float32, bfloat16 or float16, on the CPU")
    return known


Rows = tuple[int, int, int, int, int]
"""A matrix as kernels see it: dtype code, rows, width, bytes from row to row, address. (Plain: a named tuple takes as
long to make as all the checks.)"""


def matrix(name: str, tensor: torch.Tensor) -> Rows:
    """A [T, width] with contiguous rows.

    Raises:
        ValueError: it is not that.
    """
    dtype = CODES.get(tensor.dtype)
    shape = tensor.shape
    if dtype is None or len(shape) != 2 or not tensor.is_cpu:
        _refuse(name, tensor, "[T, n] of float32, bfloat16 or float16, on the CPU")
    count, width = shape
    stride = width
    if not tensor.is_contiguous():
        stride, one = tensor.stride()
        if one != 1:
            _refuse(name, tensor, "[T, n] with contiguous rows")
    return dtype, count, width, stride * ITEM_SIZE[dtype], tensor.data_ptr()


def alike(name: str, rows: Rows, other_name: str, other: Rows) -> None:
    """Two matrices have one shape and dtype."""
    if rows[:3] != other[:3]:
        raise ValueError(
            f"{name} is [{rows[1]}, {rows[2]}] and {other_name} [{other[1]}, {other[2]}], of dtype codes {rows[0]} and "
            f"{other[0]}: they must be alike"
        )


def heads(name: str, tensor: torch.Tensor) -> Rows:
    """A [T, heads, D], the heads of a row one after the other: as a matrix.

    Raises:
        ValueError: it is not that.
    """
    dtype = CODES.get(tensor.dtype)
    shape = tensor.shape
    if dtype is None or len(shape) != 3 or not tensor.is_cpu:
        _refuse(name, tensor, "[T, heads, D] of float32, bfloat16 or float16, on the CPU")
    count, number, dim = shape
    stride, head, one = tensor.stride()
    if one != 1 or (head != dim and number > 1):
        _refuse(name, tensor, "[T, heads, D] with contiguous rows")
    return dtype, count, number * dim, stride * ITEM_SIZE[dtype], tensor.data_ptr()


def vector(name: str, tensor: torch.Tensor, dtype: torch.dtype, size: int) -> int:
    """The address of a contiguous [size] of ``dtype``.

    Raises:
        ValueError: it is not that.
    """
    if tensor.dtype != dtype or tensor.shape != (size,) or not tensor.is_contiguous() or not tensor.is_cpu:
        _refuse(name, tensor, f"a contiguous [{size}] of {dtype} on the CPU")
    return tensor.data_ptr()


def weight(name: str, tensor: torch.Tensor, size: int) -> tuple[int, int]:
    """The dtype code and address of a contiguous [size].

    Raises:
        ValueError: it is not that.
    """
    dtype = CODES.get(tensor.dtype)
    if dtype is None or tensor.shape != (size,) or not tensor.is_contiguous() or not tensor.is_cpu:
        _refuse(name, tensor, f"a contiguous [{size}] of float32, bfloat16 or float16, on the CPU")
    return dtype, tensor.data_ptr()


class Remembered(Generic[Looked, Described]):
    """Descriptions of long-lived tensors, by identity. The tensors are not kept alive."""

    def __init__(self, describe: Callable[[Looked], Described]) -> None:
        self._describe = describe
        self._known: dict[int, tuple[Callable[[], Any], int, Described]] = {}

    def __call__(self, tensor: Looked) -> Described:
        """What is known of a tensor; looked at again if its memory has moved."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor and known[1] == tensor.data_ptr():
            return known[2]
        described = self._describe(tensor)
        if len(self._known) > 256:
            self._known.clear()
        self._known[id(tensor)] = (weakref.ref(tensor), tensor.data_ptr(), described)
        return described


class Cache(NamedTuple):
    """A ``kv`` as kernels see it; sizes and distances in bytes."""

    dtype: int
    num_layers: int
    num_kv_heads: int
    block_size: int
    dim: int
    page: int
    head: int
    scales: int  #: from a head's first row to its first scale; 0 where there are none
    address: int


_WANTED = "KvLayout.view's [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]"


def _cache(kv: Kv) -> Cache:
    if isinstance(kv, QuantizedKv):
        return _quantized_cache(kv)
    dtype = code("kv", kv)
    if kv.dim() != 6 or kv.shape[2] != 2 or not kv[:1].is_contiguous():
        _refuse("kv", kv, _WANTED)
    _, num_layers, _, num_kv_heads, block_size, dim = kv.shape
    size = ITEM_SIZE[dtype]
    head = block_size * dim * size
    return Cache(dtype, num_layers, num_kv_heads, block_size, dim, kv.stride(0) * size, head, 0, kv.data_ptr())


def _quantized_cache(kv: QuantizedKv) -> Cache:
    values, scales = kv.values, kv.scales
    if values.dim() != 6 or values.shape[2] != 2 or values.dtype != torch.int8 or not values.is_cpu:
        _refuse("kv.values", values, f"{_WANTED} of int8, on the CPU")
    _, num_layers, _, num_kv_heads, block_size, dim = values.shape
    page, head = values.stride(0), values.stride(3)
    heads = (page, 2 * num_kv_heads * head, num_kv_heads * head, head)
    if values.stride() != (*heads, dim, 1):
        _refuse("kv.values", values, _WANTED)
    if (
        scales.shape != values.shape[:5]
        or scales.dtype != torch.float32
        or not scales.is_cpu
        or scales.stride() != (*(size // 4 for size in heads), 1)
    ):
        _refuse("kv.scales", scales, "float32 of the shape of kv.values but for the last, views of the same pages")
    behind = scales.data_ptr() - values.data_ptr()
    return Cache(INT8, num_layers, num_kv_heads, block_size, dim, page, head, behind, values.data_ptr())


cache = Remembered(_cache)
"""Describes a ``kv``."""


def _angles(cos_sin: torch.Tensor) -> int:
    if cos_sin.dim() != 2 or cos_sin.dtype != torch.float32 or not cos_sin.is_contiguous() or cos_sin.shape[1] % 2:
        _refuse("cos_sin", cos_sin, "a contiguous float32 [positions, R], R even, on the CPU")
    code("cos_sin", cos_sin)
    return cos_sin.shape[1]


angles = Remembered(_angles)
"""How many dimensions a table of angles rotates."""


class Batch(NamedTuple):
    """An ``AttentionMetadata`` as kernels see it."""

    num_seqs: int
    num_rows: int
    max_query: int
    max_context: int
    tables: int
    table_stride: int  #: bytes
    query_start: int
    context_len: int
    positions: int
    slots: int


def batch(meta: AttentionMetadata) -> Batch:
    """Look at a batch's tensors.

    Raises:
        ValueError: one is not as :class:`AttentionMetadata` says.
    """
    tables = meta.block_tables
    if tables.dim() != 2 or tables.dtype != torch.int32 or tables.stride(1) != 1 or not tables.is_cpu:
        _refuse("meta.block_tables", tables, "int32 [num_seqs, n] with contiguous rows, on the CPU")
    num_seqs, num_rows = tables.shape[0], meta.positions.shape[0]
    return Batch(
        num_seqs,
        num_rows,
        meta.max_query,
        meta.max_context,
        tables.data_ptr(),
        tables.stride(0) * 4,
        vector("meta.query_start", meta.query_start, torch.int32, num_seqs + 1),
        vector("meta.context_len", meta.context_len, torch.int32, num_seqs),
        vector("meta.positions", meta.positions, torch.int64, num_rows),
        vector("meta.slots", meta.slots, torch.int64, num_rows),
    )
