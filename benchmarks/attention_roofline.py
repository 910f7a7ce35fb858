"""What share of the machine attention gets: decode beside memory bandwidth, prefill beside the peak of matrix products.

    python benchmarks/attention_roofline.py [--threads 2] [--only decode|prefill] [--kv auto|int8]

Keys and values lie in as many layers as it takes to come from memory, not from a cache; calls go from layer to layer.
A decode's roofline is its keys and values over the bandwidth at which this machine reads memory. A prefill's is its
products over what torch's largest matrix products attain here, in bfloat16 and in float32.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from kernels_cpu import BLOCK_SIZE, metadata
from rich.console import Console
from rich.table import Table

from octavo.kernels import KvLayout, QuantizedKv, load

SHAPES = {"SmolLM2-135M": (9, 3, 64), "Qwen3-0.6B": (16, 8, 128)}  # query heads, KV heads, head size
DECODES = {"1 x 32768": [(1, 32768)], "4 x 1024": [(1, 1024)] * 4, "64 x 256": [(1, 256)] * 64}
PREFILLS = {
    "512 of 1 x 32768": [(512, 32768)],
    "1 x 2048": [(2048, 2048)],
    "4 x 512": [(512, 512)] * 4,
    "64 x 32": [(32, 32)] * 64,
}
POOL = 600e6
"""Bytes of keys and values that are gone through before any is met again."""


def seconds(call: Callable[[], object], enough: float) -> float:
    """The median time of a call, over at least three calls and ``enough`` seconds."""
    call()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < enough:
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def bandwidth(enough: float) -> float:
    """Bytes a second that all threads together read from memory."""
    memory = torch.ones(int(POOL) // 4)
    return memory.nbytes / seconds(memory.sum, enough)


def product_peak(dtype: torch.dtype, enough: float) -> float:
    """FLOP a second of a large matrix product."""
    n = 2048
    a, b, c = (torch.randn(n, n).to(dtype) for _ in range(3))
    return 2 * n**3 / seconds(lambda: torch.mm(a, b, out=c), enough)


class Attention:
    """One batch over layers enough to fill ``POOL``."""

    def __init__(self, shape: tuple[int, int, int], lengths: list[tuple[int, int]], kv: str) -> None:
        self.heads, self.kv_heads, self.dim = shape
        self.lengths = lengths
        blocks, self.meta = metadata(lengths)
        stored = torch.int8 if kv == "int8" else torch.bfloat16
        one = KvLayout(1, self.kv_heads, self.dim, BLOCK_SIZE, stored)
        self.layer_bytes = sum(context for _, context in lengths) * one.page_bytes // BLOCK_SIZE
        self.layers = max(2, min(400, -(-int(POOL) // (blocks * one.page_bytes))))
        layout = KvLayout(self.layers, self.kv_heads, self.dim, BLOCK_SIZE, stored)
        self.kv = layout.view(layout.allocate(blocks))
        if isinstance(self.kv, QuantizedKv):
            self.kv.values.random_(-127, 128)
            self.kv.scales.fill_(1 / 64)
        else:
            self.kv.normal_()
        rows = len(self.meta.positions)
        self.qkv = torch.randn(rows, (self.heads + 2 * self.kv_heads) * self.dim).bfloat16()
        self.out = torch.empty(rows, self.heads * self.dim, dtype=torch.bfloat16)
        self.cos_sin = torch.rand(max(context for _, context in lengths), self.dim)
        self.layer = 0
        self.kernels = load("cpu")

    def __call__(self) -> None:
        """The next layer."""
        self.layer = (self.layer + 1) % self.layers
        self.kernels.fused_attention(
            self.qkv, None, None, 1e-6, self.cos_sin, self.kv, self.layer, self.meta, self.dim**-0.5, self.out,
            self.heads, self.kv_heads,
        )  # fmt: skip

    @property
    def operations(self) -> float:
        """Floating-point operations of a layer."""
        return 4.0 * self.heads * self.dim * sum(new * (context - (new - 1) / 2) for new, context in self.lengths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["decode", "prefill"])
    parser.add_argument("--kv", choices=["auto", "int8"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    options = parser.parse_args()
    torch.manual_seed(0)
    load("cpu").set_num_threads(options.threads)
    reading = bandwidth(options.seconds)
    peaks = {dtype: product_peak(dtype, options.seconds) for dtype in (torch.bfloat16, torch.float32)}
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}")
    print(
        f"memory is read at {reading / 1e9:.1f} GB/s; products: bfloat16 {peaks[torch.bfloat16] / 1e9:,.0f}, "
        f"float32 {peaks[torch.float32] / 1e9:,.0f} GFLOP/s"
    )
    storages = [options.kv] if options.kv else ["auto", "int8"]
    decodes = Table("decode", "KV", "us a layer", "GB/s", "of bandwidth")
    prefills = Table("prefill", "KV", "us a layer", "GFLOP/s", "of bfloat16 peak", "of float32 peak")
    with torch.inference_mode():
        for model, shape in SHAPES.items():
            for name, lengths in ({} if options.only == "prefill" else DECODES).items():
                for kv in storages:
                    batch = Attention(shape, lengths, kv)
                    taken = seconds(batch, options.seconds)
                    speed = batch.layer_bytes / taken
                    decodes.add_row(
                        f"{model}: {name}", "bfloat16" if kv == "auto" else kv, f"{taken * 1e6:,.0f}",
                        f"{speed / 1e9:.1f}", f"{speed / reading:.0%}",
                    )  # fmt: skip
            for name, lengths in ({} if options.only == "decode" else PREFILLS).items():
                for kv in storages:
                    batch = Attention(shape, lengths, kv)
                    taken = seconds(batch, options.seconds)
                    speed = batch.operations / taken
                    prefills.add_row(
                        f"{model}: {name}", "bfloat16" if kv == "auto" else kv, f"{taken * 1e6:,.0f}",
                        f"{speed / 1e9:,.0f}", *(f"{speed / peak:.0%}" for peak in peaks.values()),
                    )  # fmt: skip
    for table in (decodes, prefills):
        if table.row_count:
            Console(width=130).print(table)


if __name__ == "__main__":
    main()
