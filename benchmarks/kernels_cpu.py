"""What each CPU kernel takes, beside the same in eager torch.

    python benchmarks/kernels_cpu.py [--only attention] [--dtype bfloat16] [--threads 2]

Attention is timed over the layers of a whole model in turn, so that keys and values come from memory rather than from
a cache that happens to hold them; "eager" gathers the blocks and calls scaled_dot_product_attention for each sequence
(prefill) or for the batch (decode). Times are medians of runs interleaved with eager's.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from octavo.kernels import AttentionMetadata, KvLayout, load

MODELS = {  # layers, query heads, KV heads, head size, hidden, intermediate, vocabulary
    "SmolLM2-135M": (30, 9, 3, 64, 576, 1536, 49152),
    "Qwen3-0.6B": (28, 16, 8, 128, 1024, 3072, 151936),
}
BLOCK_SIZE = 16


def microseconds(actions: list[Callable[[], object]], rounds: int, calls: int) -> list[float]:
    """The median time of one call of each action; rounds alternate between them.

    The first action is called ``calls`` times a round, the others, which are there to compare with, a quarter of that.
    """
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for i, (action, taken) in enumerate(zip(actions, times, strict=True)):
            count = calls if i == 0 else -(-calls // 4)
            begin = time.perf_counter()
            for _ in range(count):
                action()
            taken.append((time.perf_counter() - begin) / count * 1e6)
    return [statistics.median(taken) for taken in times]


def metadata(lengths: list[tuple[int, int]]) -> tuple[int, AttentionMetadata]:
    """Sequences of (new tokens, context), their blocks dealt out in random order."""
    counts = [-(-context // BLOCK_SIZE) for _, context in lengths]
    blocks = torch.randperm(sum(counts)).int().split(counts)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    positions = []
    slots = []
    for row, (own, (new, context)) in enumerate(zip(blocks, lengths, strict=True)):
        tables[row, : len(own)] = own
        place = torch.arange(context - new, context)
        positions.append(place)
        slots.append(own[place // BLOCK_SIZE].long() * BLOCK_SIZE + place % BLOCK_SIZE)
    queries = torch.tensor([0] + [new for new, _ in lengths]).cumsum(0).int()
    meta = AttentionMetadata(
        queries,
        torch.tensor([context for _, context in lengths], dtype=torch.int32),
        tables,
        torch.cat(positions),
        torch.cat(slots),
        max(new for new, _ in lengths),
        max(context for _, context in lengths),
    )
    return sum(counts), meta


def eager_rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Attention:
    """One batch over one model's layers, by the kernel and by eager torch."""

    def __init__(self, model: str, lengths: list[tuple[int, int]], dtype: torch.dtype) -> None:
        self.layers, self.heads, self.kv_heads, self.dim, *_ = MODELS[model]
        blocks, self.meta = metadata(lengths)
        self.lengths = lengths
        layout = KvLayout(self.layers, self.kv_heads, self.dim, BLOCK_SIZE, dtype)
        self.kv = layout.view(layout.allocate(blocks)).normal_()
        rows = len(self.meta.positions)
        self.qkv = torch.randn(rows, (self.heads + 2 * self.kv_heads) * self.dim).to(dtype)
        self.out = torch.empty(rows, self.heads * self.dim, dtype=dtype)
        self.cos_sin = torch.rand(8192, self.dim)
        self.layer = 0
        self.norm = torch.ones(self.dim, dtype=dtype) if model.startswith("Qwen3") else None
        self.kernels = load("cpu")

    def kernel(self) -> None:
        """The next layer, by the kernel."""
        self.layer = (self.layer + 1) % self.layers
        self.kernels.fused_attention(
            self.qkv, self.norm, self.norm, 1e-6, self.cos_sin, self.kv, self.layer, self.meta, self.dim**-0.5,
            self.out, self.heads, self.kv_heads,
        )  # fmt: skip

    def eager(self) -> None:
        """The next layer, by torch's operators."""
        self.layer = (self.layer + 1) % self.layers
        meta, dim = self.meta, self.dim
        q, k, v = self.qkv.view(-1, self.heads + 2 * self.kv_heads, dim).split(
            (self.heads, self.kv_heads, self.kv_heads), 1
        )
        if self.norm is not None:
            q, k = F.rms_norm(q, (dim,), self.norm), F.rms_norm(k, (dim,), self.norm)
        cos, sin = (t.repeat(1, 2)[:, None].to(q.dtype) for t in self.cos_sin[meta.positions].chunk(2, -1))
        q, k = eager_rotate(q, cos, sin), eager_rotate(k, cos, sin)
        blocks, offsets = meta.slots // BLOCK_SIZE, meta.slots % BLOCK_SIZE
        self.kv[blocks, self.layer, 0, :, offsets] = k
        self.kv[blocks, self.layer, 1, :, offsets] = v
        if meta.max_query == 1:
            pages = self.kv[meta.block_tables.long(), self.layer]
            keys, values = (pages[:, :, i].transpose(1, 2).flatten(2, 3) for i in (0, 1))
            mask = torch.arange(keys.shape[2])[None, None, None] < meta.context_len[:, None, None, None]
            F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask, enable_gqa=True)
            return
        start = 0
        for row, (new, context) in enumerate(self.lengths):
            pages = self.kv[meta.block_tables[row, : -(-context // BLOCK_SIZE)].long(), self.layer]
            keys, values = (pages[:, i].transpose(0, 1).flatten(1, 2)[None, :, :context] for i in (0, 1))
            mask = torch.arange(context)[None] <= torch.arange(context - new, context)[:, None]
            part = q[start : start + new].transpose(0, 1)[None]
            F.scaled_dot_product_attention(part, keys, values, attn_mask=mask, enable_gqa=True)
            start += new

    def work(self) -> tuple[float, float]:
        """Bytes of keys and values read, and floating-point operations."""
        keys = sum(context for _, context in self.lengths)
        seen = sum(new * (context - (new - 1) / 2) for new, context in self.lengths)
        return 2.0 * keys * self.kv_heads * self.dim * self.kv.element_size(), 4.0 * seen * self.heads * self.dim


def attention_rows(dtype: torch.dtype, rounds: int) -> list[tuple[str, ...]]:
    rows = []
    cases = [
        ("SmolLM2-135M", "decode, 1 x 256", [(1, 256)]),
        ("SmolLM2-135M", "decode, 1 x 4096", [(1, 4096)]),
        ("SmolLM2-135M", "decode, 32 x 300", [(1, 300)] * 32),
        ("SmolLM2-135M", "prefill, 1 x 256", [(256, 256)]),
        ("SmolLM2-135M", "prefill, 1 x 2048", [(2048, 2048)]),
        ("SmolLM2-135M", "mixed, 31 x 300 and 128 of 256", [(1, 300)] * 31 + [(128, 256)]),
        ("Qwen3-0.6B", "decode, 1 x 256", [(1, 256)]),
        ("Qwen3-0.6B", "decode, 32 x 300", [(1, 300)] * 32),
        ("Qwen3-0.6B", "prefill, 1 x 256", [(256, 256)]),
    ]
    for model, name, lengths in cases:
        batch = Attention(model, lengths, dtype)
        calls = batch.layers if len(batch.meta.positions) < 512 else 4
        taken, eager = microseconds([batch.kernel, batch.eager], rounds, calls)
        moved, operations = batch.work()
        rows.append(
            ("fused_attention", f"{model}: {name}", taken, eager, moved / taken / 1e3, operations / taken / 1e3)
        )
    return [tuple(map(str, row[:2])) + formatted(*row[2:]) for row in rows]


def formatted(taken: float, eager: float, bandwidth: float, speed: float | None = None) -> tuple[str, ...]:
    return (
        f"{taken:.1f}",
        f"{bandwidth:.1f}",
        "" if speed is None else f"{speed:.0f}",
        f"{eager:.0f}",
        f"{eager / taken:.1f}x",
    )


def row_kernels(dtype: torch.dtype, rounds: int) -> list[tuple[str, ...]]:
    kernels = load("cpu")
    rows = []
    size = dtype.itemsize
    for model, (_, _, _, _, hidden, inner, _) in MODELS.items():
        for count in (1, 32, 256):
            x, residual, out = (torch.randn(count, hidden).to(dtype) for _ in range(3))
            weight = torch.ones(hidden, dtype=dtype)

            def eager_norm(x: torch.Tensor = x, residual: torch.Tensor = residual, w: torch.Tensor = weight) -> None:
                residual.add_(x)
                y = residual.float()
                w * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

            def norm(
                x: torch.Tensor = x, r: torch.Tensor = residual, w: torch.Tensor = weight, o: torch.Tensor = out
            ) -> None:
                kernels.add_rms_norm(x, r, w, 1e-6, o)

            taken, eager = microseconds([norm, eager_norm], rounds, 200)
            rows.append(
                (
                    "add_rms_norm",
                    f"{model}: {count} x {hidden}",
                    *formatted(taken, eager, 4 * count * hidden * size / taken / 1e3),
                )
            )
            gate_up, target = torch.randn(count, 2 * inner).to(dtype), torch.empty(count, inner, dtype=dtype)

            def eager_gate(x: torch.Tensor = gate_up) -> None:
                gate, up = x.chunk(2, -1)
                F.silu(gate) * up

            def gate(x: torch.Tensor = gate_up, o: torch.Tensor = target) -> None:
                kernels.silu_and_mul(x, o)

            taken, eager = microseconds([gate, eager_gate], rounds, 100)
            rows.append(
                (
                    "silu_and_mul",
                    f"{model}: {count} x {inner}",
                    *formatted(taken, eager, 3 * count * inner * size / taken / 1e3),
                )
            )
    return rows


def sampling_rows(rounds: int) -> list[tuple[str, ...]]:
    kernels = load("cpu")
    rows = []
    for model, (*_, vocab) in MODELS.items():
        for count in (1, 32):
            # logits as peaked as a trained model's, and flat ones, the worst case
            for shape, logits in (("peaked", torch.randn(count, vocab) * 3), ("flat", torch.randn(count, vocab) * 0.1)):
                for name, (temperature, k, p, m) in {
                    "greedy": (0.0, 0, 1.0, 0.0),
                    "plain": (1.0, 0, 1.0, 0.0),
                    "top_k 50": (1.0, 50, 1.0, 0.0),
                    "top_p 0.95": (0.8, 0, 0.95, 0.0),
                }.items():
                    arguments = (
                        torch.full((count,), temperature),
                        torch.full((count,), k, dtype=torch.int32),
                        torch.full((count,), p),
                        torch.full((count,), m),
                        *(torch.arange(count) for _ in range(3)),
                    )

                    def draw(logits: torch.Tensor = logits, arguments: tuple[torch.Tensor, ...] = arguments) -> None:
                        kernels.sample(logits, *arguments)

                    def eager_draw(
                        logits: torch.Tensor = logits,
                        name: str = name,
                        t: float = temperature,
                        k: int = k,
                        p: float = p,
                    ) -> None:
                        if name == "greedy":
                            logits.argmax(-1)
                            return
                        probabilities = (logits / t).softmax(-1)
                        if k:
                            probabilities, _ = probabilities.topk(k)
                        elif p < 1:
                            probabilities, _ = probabilities.sort(descending=True)
                            probabilities[probabilities.cumsum(-1) - probabilities > p] = 0
                        probabilities.multinomial(1)

                    taken, eager = microseconds([draw, eager_draw], max(3, rounds // 2), 1 if count > 1 else 4)
                    label = f"{model}: {count} x {vocab}, {name}, {shape}"
                    rows.append(("sample", label, *formatted(taken, eager, 4 * count * vocab / taken / 1e3)))

    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["attention", "rows", "sampling"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    kernels = load("cpu")
    kernels.set_num_threads(options.threads)
    begin = time.perf_counter()
    kernels.warm_up()
    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}, {dtype}"
    )
    print(f"kernels ready after {time.perf_counter() - begin:.1f} s")
    table = Table("kernel", "shape", "us", "GB/s", "GFLOP/s", "eager us", "faster")
    parts = {
        "attention": lambda: attention_rows(dtype, options.rounds),
        "rows": lambda: row_kernels(dtype, options.rounds),
    }
    parts["sampling"] = lambda: sampling_rows(options.rounds)
    with torch.inference_mode():
        for name, measure in parts.items():
            if options.only in (None, name):
                for row in measure():
                    table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
