"""Batches for kernel tests: random memory, poisoned wherever nothing may be read, and a float64 answer."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from types import ModuleType

import numba
import torch

from octavo.kernels import AttentionMetadata, Kv, KvLayout, QuantizedKv, load
from octavo.kernels.reference import write_kv
from octavo.kernels.reference.cache import quantize_rows

INTERPRETED = bool(numba.config.DISABLE_JIT)
"""Kernels run as plain Python: shapes must be tiny."""

BACKENDS = ("cpu",) if INTERPRETED else ("reference", "cpu")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Absolute, for results of size 1: a rounding of the output, and for float32 the sums on the way."""


def backend(name: str) -> ModuleType:
    """A backend by name."""
    return load(name)


def small(value: int, least: int = 1, by: int = 8) -> int:
    """The value, or where kernels are interpreted a fraction of it."""
    return max(least, value // by) if INTERPRETED else value


def held(rows: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows [..., D] as a cache of ``dtype`` holds them, in that dtype; quantised ones as float32."""
    if dtype != torch.int8:
        return rows.to(dtype)
    values, scales = quantize_rows(rows)
    return values * scales[..., None]


def items(kv: Kv) -> torch.Tensor:
    """What a cache holds, [num_blocks, num_layers, 2, HK, block_size, D]; quantised, as float32."""
    return kv.values * kv.scales[..., None] if isinstance(kv, QuantizedKv) else kv


def poison(kv: Kv) -> None:
    """NaN throughout."""
    if isinstance(kv, QuantizedKv):
        kv.values.random_(-127, 128)
        kv.scales.fill_(math.nan)
    else:
        kv.fill_(math.nan)


@dataclass
class Case:
    """One call of attention: its arguments, and what makes its answer."""

    lengths: list[tuple[int, int]]  #: (new tokens, context) of each sequence
    num_heads: int
    num_kv_heads: int
    dim: int
    block_size: int = 16
    dtype: torch.dtype = torch.float32
    kv_dtype: torch.dtype | None = None
    window: int | None = None
    softcap: float = 0.0
    has_sinks: bool = False
    has_norm: bool = False
    rotary: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        shuffled = random.Random(self.seed)
        self.scale = 1 / math.sqrt(self.dim)
        self.kv_dtype = self.kv_dtype or self.dtype
        counts = [-(-context // self.block_size) for _, context in self.lengths]
        num_blocks = sum(counts) + 3
        free = list(range(num_blocks))
        shuffled.shuffle(free)
        # entries that no token has are -1: following one would be seen
        tables = torch.full((len(counts), max(counts) + 2), -1, dtype=torch.int32)
        self.rows: list[tuple[int, int]] = []  # (sequence, position)
        slots = []
        for seq, (new, context) in enumerate(self.lengths):
            own = [free.pop() for _ in range(counts[seq])]
            if self.window is not None:
                # blocks that have left the window of every new token are gone
                gone = max(0, context - new - self.window + 1) // self.block_size
                own[:gone] = [-1] * gone
            tables[seq, : len(own)] = torch.tensor(own, dtype=torch.int32)
            for position in range(context - new, context):
                self.rows.append((seq, position))
                slots.append(own[position // self.block_size] * self.block_size + position % self.block_size)
        starts = torch.tensor([0] + [new for new, _ in self.lengths]).cumsum(0).int()
        self.meta = AttentionMetadata(
            starts,
            torch.tensor([context for _, context in self.lengths], dtype=torch.int32),
            tables,
            torch.tensor([position for _, position in self.rows]),
            torch.tensor(slots),
            max(new for new, _ in self.lengths),
            max(context for _, context in self.lengths),
        )
        self.layout = KvLayout(2, self.num_kv_heads, self.dim, self.block_size, self.kv_dtype)
        # what each sequence's past holds, before this batch
        self.past = [
            held(torch.randn(2, context, self.num_kv_heads, self.dim), self.kv_dtype) for _, context in self.lengths
        ]
        rows = len(self.rows)
        self.qkv = torch.randn(rows, (self.num_heads + 2 * self.num_kv_heads) * self.dim).to(self.dtype)
        longest = max(context for _, context in self.lengths)
        angles = torch.rand(longest + 1, (self.rotary if self.rotary is not None else self.dim) // 2) * 6
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
        self.norms = [torch.rand(self.dim).to(self.dtype) + 0.5 if self.has_norm else None for _ in range(2)]
        self.sinks = torch.randn(self.num_heads) if self.has_sinks else None

    def memory(self, written: bool) -> Kv:
        """A cache: NaN but for each sequence's past in layer 1, and with ``written`` its new tokens too."""
        kv = self.layout.view(self.layout.allocate(self.meta.block_tables.max().item() + 4))
        poison(kv)
        for seq, (new, context) in enumerate(self.lengths):
            end = context if written else context - new
            place = torch.arange(end)
            blocks = self.meta.block_tables[seq, place // self.block_size].long()
            there = blocks >= 0
            slots = blocks * self.block_size + place % self.block_size
            write_kv(*(rows[:end][there] for rows in self.past[seq]), kv, 1, slots[there])
        return kv

    def poisoned(self) -> torch.Tensor:
        """An output to be written."""
        return torch.full((len(self.rows), self.num_heads * self.dim), math.nan, dtype=self.dtype)

    def fused(self, name: str, batch_invariant: bool = False) -> tuple[torch.Tensor, Kv]:
        """fused_attention's output, and the cache afterwards."""
        kv, out = self.memory(written=False), self.poisoned()
        self.left = kv
        backend(name).fused_attention(
            self.qkv.clone(), self.norms[0], self.norms[1], 1e-5, self.cos_sin, kv, 1, self.meta, self.scale, out,
            self.num_heads, self.num_kv_heads, self.window, self.softcap, self.sinks, batch_invariant,
        )  # fmt: skip
        return out, kv

    def paged(self, name: str, batch_invariant: bool = False) -> torch.Tensor:
        """paged_attention's output, over a cache that holds the past's tokens throughout."""
        kv, out = self.memory(written=True), self.poisoned()
        heads = out.view(-1, self.num_heads, self.dim)
        q = self.qkv.view(len(self.rows), -1, self.dim)[:, : self.num_heads]
        backend(name).paged_attention(
            q, kv, 1, self.meta, self.scale, heads, self.window, self.softcap, self.sinks, batch_invariant
        )
        return out

    def new_keys(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k, v of the batch after norm and rotation, float64 [T, heads, D]."""
        parts = self.qkv.double().view(len(self.rows), -1, self.dim)
        q, k, v = parts.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), 1)
        if self.has_norm:
            q, k = (
                x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
                for x, weight in zip((q, k), self.norms, strict=True)
            )
        half = self.cos_sin.shape[1] // 2
        angles = self.cos_sin.double()[self.meta.positions][:, None]
        cos, sin = angles[..., :half], angles[..., half:]

        def turned(x: torch.Tensor) -> torch.Tensor:
            a, b = x[..., :half], x[..., half : 2 * half]
            return torch.cat((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), -1)

        return turned(q), turned(k), v

    def expected(self, fused: bool) -> torch.Tensor:
        """The answer in float64 [T, HQ * D]."""
        q, k, v = self.new_keys()
        if not fused:
            q = self.qkv.double().view(len(self.rows), -1, self.dim)[:, : self.num_heads]
        out = torch.empty(len(self.rows), self.num_heads, self.dim, dtype=torch.float64)
        group = self.num_heads // self.num_kv_heads
        row = 0
        for seq, (new, context) in enumerate(self.lengths):
            keys, values = (x.double().clone() for x in self.past[seq])
            mine = slice(row, row + new)
            if fused and self.kv_dtype == torch.int8:
                # as they were stored: a rounding more or less in k would be a whole step of its int8
                slots = self.meta.slots[mine]
                stored = items(self.left)[slots // self.block_size, 1, :, :, slots % self.block_size]
                keys[context - new :], values[context - new :] = stored[:, 0], stored[:, 1]
            elif fused:
                keys[context - new :] = k[mine].to(self.kv_dtype).double()
                values[context - new :] = v[mine].to(self.kv_dtype).double()
            keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
            scores = torch.einsum("nhd,lhd->hnl", q[mine], keys) * self.scale
            if self.softcap:
                scores = self.softcap * (scores / self.softcap).tanh()
            at, seen = torch.arange(context - new, context)[:, None], torch.arange(context)[None]
            hidden = seen > at
            if self.window is not None:
                hidden |= seen <= at - self.window
            scores.masked_fill_(hidden, -math.inf)
            if self.sinks is not None:
                sink = self.sinks.double()[:, None, None].expand(-1, new, 1)
                weights = torch.cat((scores, sink), -1).softmax(-1)[..., :-1]
            else:
                weights = scores.softmax(-1)
            out[mine] = torch.einsum("hnl,lhd->nhd", weights, values)
            row += new
        return out.flatten(1)

    def check(self, out: torch.Tensor, fused: bool) -> None:
        """The output is the answer, to the dtype's tolerance."""
        expected = self.expected(fused)
        assert not out.isnan().any(), "poison was read, or an output was not written"
        error = (out.double() - expected).abs().max().item()
        assert error <= TOLERANCE[self.dtype] * max(1.0, expected.abs().max().item()), error
