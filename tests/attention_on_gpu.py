"""Batches of :class:`kernel_case.Case` with tensors moved to the GPU; answers stay on the CPU, in float64."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import torch
from kernel_case import Case

from octavo.kernels import AttentionMetadata, Kv, QuantizedKv


def on_gpu(meta: AttentionMetadata) -> AttentionMetadata:
    tensors = {name: value for name in meta.__slots__ if isinstance(value := getattr(meta, name), torch.Tensor)}
    return dataclasses.replace(meta, **{name: tensor.cuda() for name, tensor in tensors.items()})


def cache(case: Case, written: bool) -> tuple[torch.Tensor, Kv]:
    """The cache's bytes and its view, poisoned but for what the case's sequences hold."""
    kv = case.memory(written)
    pages = (kv.values if isinstance(kv, QuantizedKv) else kv)._base.view(torch.uint8).cuda()
    return pages, case.layout.view(pages)


def fused(triton: ModuleType, case: Case, batch_invariant: bool = False) -> torch.Tensor:
    """fused_attention's output, on the CPU."""
    pages, kv = cache(case, written=False)
    out = case.poisoned().cuda()
    norms = [None if norm is None else norm.cuda() for norm in case.norms]
    sinks = None if case.sinks is None else case.sinks.cuda()
    triton.fused_attention(
        case.qkv.cuda(), *norms, 1e-5, case.cos_sin.cuda(), kv, 1, on_gpu(case.meta), case.scale, out,
        case.num_heads, case.num_kv_heads, case.window, case.softcap, sinks, batch_invariant,
    )  # fmt: skip
    case.left = case.layout.view(pages.cpu())
    return out.cpu()


def paged(triton: ModuleType, case: Case, batch_invariant: bool = False) -> torch.Tensor:
    """paged_attention's output, on the CPU."""
    _, kv = cache(case, written=True)
    out = case.poisoned().cuda()
    q = case.qkv.cuda().view(len(case.rows), -1, case.dim)[:, : case.num_heads]
    sinks = None if case.sinks is None else case.sinks.cuda()
    triton.paged_attention(
        q, kv, 1, on_gpu(case.meta), case.scale, out.view(-1, case.num_heads, case.dim), case.window, case.softcap,
        sinks, batch_invariant,
    )  # fmt: skip
    return out.cpu()
