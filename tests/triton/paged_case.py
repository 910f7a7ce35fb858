"""Attention batches for Triton's kernels: what :class:`kernel_case.Case` makes, through the kernels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from kernel_case import Case

from octavo.kernels.triton.cache import KvPlace


def queries(case: Case) -> torch.Tensor:
    """[T, HQ, D], a strided view."""
    return case.qkv.view(len(case.rows), -1, case.dim)[:, : case.num_heads]


def attend(case: Case, kernel: Callable[..., Any], *first: Any) -> torch.Tensor:
    """What a kernel makes of a batch whose keys and values are all stored: [T, HQ * D], NaN where it wrote nothing."""
    out = case.poisoned()
    heads = out.view(-1, case.num_heads, case.dim)
    kernel(
        queries(case), *first, stored(case), case.meta, case.scale, heads, case.window, case.softcap, case.sinks
    )  # fmt: skip
    return out


def stored(case: Case) -> KvPlace:
    """The batch's cache, its new tokens written too."""
    return KvPlace.of(case.memory(written=True), 1)


def check_rows(case: Case, out: torch.Tensor, rows: list[bool], tolerance: float) -> None:
    """The named rows are right, and the others were left alone."""
    mine = torch.tensor(rows)
    assert out[~mine].isnan().all()
    expected = case.expected(fused=False)[mine]
    error = (out[mine].double() - expected).abs().max().item()
    assert error <= tolerance * max(1.0, expected.abs().max().item()), error
