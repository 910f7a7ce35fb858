"""Batches for the kernel that norms, rotates and writes, and their answer in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo.kernels import Kv, KvLayout


def turned(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    half = cos_sin.shape[1] // 2
    angles = cos_sin.double()[positions][:, None]
    cos, sin = angles[..., :half], angles[..., half:]
    a, b = x[..., :half], x[..., half : 2 * half]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)


def normed(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    if weight is None:
        return x
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()


@dataclass
class Case:
    """A batch, and a cache full of what must stay."""

    rows: int
    num_heads: int
    num_kv_heads: int
    dim: int
    rotated: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    has_q_norm: bool = False
    has_k_norm: bool = False
    block_size: int = 16
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        heads = self.num_heads + 2 * self.num_kv_heads
        self.qkv = torch.randn(self.rows, heads * self.dim).to(self.device, self.dtype)
        self.q_norm, self.k_norm = (
            torch.rand(self.dim).to(self.device, self.dtype) + 0.5 if has else None
            for has in (self.has_q_norm, self.has_k_norm)
        )
        angles = torch.rand(40, self.rotated // 2) * 6
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), 1).to(self.device)
        self.positions = torch.randint(0, 40, (self.rows,)).to(self.device)
        self.num_blocks = 2 + -(-self.rows // self.block_size)
        self.slots = torch.randperm(self.num_blocks * self.block_size)[: self.rows].to(self.device)

    def memory(self) -> tuple[torch.Tensor, Kv]:
        layout = KvLayout(3, self.num_kv_heads, self.dim, self.block_size, self.kv_dtype)
        torch.manual_seed(1)
        cache = torch.randint(0, 60, layout.allocate(self.num_blocks).shape, dtype=torch.uint8).to(self.device)
        return cache, layout.view(cache)

    def parts(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v as they should be, in float64."""
        heads = self.qkv.double().view(self.rows, -1, self.dim)
        q, k, v = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), 1)
        return (
            *(turned(normed(x, w), self.positions, self.cos_sin) for x, w in ((q, self.q_norm), (k, self.k_norm))),
            v,
        )

    def run(self, keep_keys: bool) -> tuple[torch.Tensor, torch.Tensor, Kv]:
        qkv, (cache, kv) = self.qkv.clone(), self.memory()
        from octavo.kernels import triton

        triton.rotate_and_write(
            qkv, self.q_norm, self.k_norm, 1e-5, self.cos_sin, self.positions, kv, 1, self.slots, self.num_heads,
            self.num_kv_heads, keep_keys,
        )  # fmt: skip
        return qkv.view(self.rows, -1, self.dim), cache, kv
