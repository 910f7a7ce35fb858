"""What kernels require of tensors, checked before their addresses are taken: a wrong address would end the process."""

from __future__ import annotations

import torch

from octavo.kernels.cpu.emitter import BF16, F16, F32, ITEM_SIZE
from octavo.kernels.metadata import AttentionMetadata

CODES = {torch.float32: F32, torch.bfloat16: BF16, torch.float16: F16}


def code(tensor: torch.Tensor) -> int:
    """The code of a tensor's dtype.

    Raises:
        ValueError: it is not float32, bfloat16 or float16, or not in this machine's memory.
    """
    known = CODES.get(tensor.dtype)
    if known is None or tensor.device.type != "cpu":
        raise ValueError(
            f"a {tensor.dtype} tensor on {tensor.device}: CPU kernels take float32, bfloat16 or float16 on the CPU"
        )
    return known


def matrix(name: str, tensor: torch.Tensor, width: int = 0) -> int:
    """The dtype code of [T, width] with contiguous rows."""
    if tensor.dim() != 2 or tensor.stride(1) != 1 or (width and tensor.shape[1] != width):
        wanted = width or "n"
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)} and strides {tensor.stride()}: it must be [T, {wanted}] with "
            "contiguous rows"
        )
    return code(tensor)


def heads(name: str, tensor: torch.Tensor) -> int:
    """The dtype code of [T, heads, D], the heads of a row one after the other."""
    shape = tensor.shape
    if len(shape) != 3 or tensor.stride(2) != 1 or (tensor.stride(1) != shape[2] and shape[1] > 1):
        raise ValueError(
            f"{name} has shape {tuple(shape)} and strides {tensor.stride()}: it must be [T, heads, D] with "
            "contiguous rows"
        )
    return code(tensor)


def vector(name: str, tensor: torch.Tensor, dtype: torch.dtype, size: int) -> int:
    """The address of a contiguous [size] of ``dtype``."""
    if tensor.shape != (size,) or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} of {tensor.dtype}: it must be a contiguous [{size}] of {dtype}"
        )
    return tensor.data_ptr()


def cache(kv: torch.Tensor, layer: int) -> tuple[int, int, int, int, int, int, int]:
    """Address of the layer's first key, dtype code, KV heads, block size, head size, bytes from block to block, bytes
    from head to head."""
    _, num_layers, two, num_kv_heads, block_size, dim = kv.shape
    dtype = code(kv)
    if two != 2 or not 0 <= layer < num_layers or not kv[:1].is_contiguous():
        raise ValueError(
            f"kv has shape {tuple(kv.shape)}, strides {kv.stride()}, and layer is {layer}: kv must be KvLayout.view's "
            f"tensor and layer below {num_layers}"
        )
    size = ITEM_SIZE[dtype]
    head_bytes = block_size * dim * size
    address = kv.data_ptr() + layer * 2 * num_kv_heads * head_bytes
    return address, dtype, num_kv_heads, block_size, dim, kv.stride(0) * size, head_bytes


def attention(
    kv: torch.Tensor,
    meta: AttentionMetadata,
    num_rows: int,
    num_heads: int,
    dim: int,
    sinks: torch.Tensor | None,
    window: int | None,
) -> None:
    """The parts of an attention call fit each other."""
    if num_heads % kv.shape[3] or dim != kv.shape[5]:
        raise ValueError(f"{num_heads} query heads of {dim} cannot share {kv.shape[3]} KV heads of {kv.shape[5]}")
    tables = meta.block_tables
    if meta.positions.shape[0] != num_rows or tables.dtype != torch.int32 or tables.stride(1) != 1:
        raise ValueError(
            f"meta describes {meta.positions.shape[0]} rows and its block tables are {tables.dtype}: there are "
            f"{num_rows} rows, and tables must be int32 with contiguous rows"
        )
    if meta.context_len.dtype != torch.int32 or meta.query_start.dtype != torch.int32:
        raise ValueError("meta.context_len and meta.query_start must be int32")
    if window is not None and window < 1:
        raise ValueError(f"window={window} must be at least 1, or None")
    if sinks is not None and (sinks.shape != (num_heads,) or not sinks.is_contiguous()):
        raise ValueError(f"sinks has shape {tuple(sinks.shape)}: it must be a contiguous [{num_heads}]")


def head_norms(q_norm: torch.Tensor | None, k_norm: torch.Tensor | None, dim: int) -> tuple[int, int, int]:
    """The dtype code of the norms' weights, and their addresses, 0 for None."""
    dtype, addresses = F32, [0, 0]
    for i, weight in enumerate((q_norm, k_norm)):
        if weight is None:
            continue
        if weight.shape != (dim,) or not weight.is_contiguous():
            raise ValueError(f"a norm's weight has shape {tuple(weight.shape)}: it must be a contiguous [{dim}]")
        if i == 1 and q_norm is not None and weight.dtype != q_norm.dtype:
            raise ValueError(f"q_norm is {q_norm.dtype} and k_norm {weight.dtype}: they must be the same")
        dtype, addresses[i] = code(weight), weight.data_ptr()
    return dtype, addresses[0], addresses[1]


def angles(cos_sin: torch.Tensor, dim: int) -> int:
    """How many dimensions are rotated."""
    rotary = cos_sin.shape[-1]
    if (
        cos_sin.dim() != 2
        or cos_sin.dtype != torch.float32
        or not cos_sin.is_contiguous()
        or rotary % 2
        or rotary > dim
    ):
        raise ValueError(
            f"cos_sin is {tuple(cos_sin.shape)} of {cos_sin.dtype}: it must be a contiguous float32 [positions, R], "
            f"R even and at most {dim}"
        )
    return rotary
