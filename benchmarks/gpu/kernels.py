"""The kernels of a model's step: their shapes, their floors, and who else can do them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from gpu.cases import Case, Contender, Inputs
from gpu.peers import (
    Vllm,
    eager_add_rms_norm,
    eager_rms_norm,
    eager_rotary,
    eager_sample,
    eager_swiglu,
    eager_top_p,
)
from torch.nn import functional as F

from octavo.kernels import AttentionMetadata, KvLayout

EPS = 1e-6
DTYPE = torch.bfloat16
SIZE = 2  # bytes of DTYPE
PAGE = 16


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and with what kernels are measured."""

    device: torch.device
    kernels: ModuleType  #: Octavo's backend
    vllm: Vllm | None = None
    tiny: bool = False  #: shapes for a look at whether everything runs

    def randn(self, *shape: int) -> torch.Tensor:
        """Normal numbers in bfloat16."""
        return torch.randn(*shape, device=self.device, dtype=torch.float32).to(DTYPE)

    def empty(self, *shape: int) -> torch.Tensor:
        """Memory for results."""
        return torch.empty(*shape, device=self.device, dtype=DTYPE)

    def pick(self, real: tuple[Any, ...], tiny: tuple[Any, ...]) -> tuple[Any, ...]:
        """Shapes."""
        return tiny if self.tiny else real


def norms(bench: Bench) -> Iterator[Case]:
    """RMSNorm, and of a sum."""
    kernels, vllm = bench.kernels, bench.vllm
    rows = bench.pick((1, 64, 1024, 8192), (1, 3))
    for width in bench.pick((1024, 4096, 8192), (64,)):
        for count in rows:

            def inputs(count: int = count, width: int = width) -> Inputs:
                x, residual, out = bench.randn(count, width), bench.randn(count, width), bench.empty(count, width)
                return {"x": x, "r": residual, "w": bench.randn(width), "out": out}

            plain: dict[str, Contender] = {
                "octavo": lambda a: kernels.rms_norm(a["x"], a["w"], EPS, a["out"]),
                "eager": lambda a: eager_rms_norm(a["x"], a["w"], EPS),
                "torch fused": lambda a: F.rms_norm(a["x"], a["x"].shape[1:], a["w"], EPS),
            }
            summed: dict[str, Contender] = {
                "octavo": lambda a: kernels.add_rms_norm(a["x"], a["r"], a["w"], EPS, a["out"]),
                "eager": lambda a: eager_add_rms_norm(a["x"], a["r"], a["w"], EPS),
                "torch fused": lambda a: F.rms_norm(a["r"].add_(a["x"]), a["x"].shape[1:], a["w"], EPS),
            }
            if vllm is not None:
                plain["vllm"] = lambda a: vllm.ops.rms_norm(a["out"], a["x"], a["w"], EPS)
                summed["vllm"] = lambda a: vllm.ops.fused_add_rms_norm(a["x"], a["r"], a["w"], EPS)
            shape = f"T={count} H={width}"
            yield Case("RMSNorm", shape, 2 * SIZE * count * width, inputs, plain)
            yield Case("add + RMSNorm", shape, 4 * SIZE * count * width, inputs, summed)


def activations(bench: Bench) -> Iterator[Case]:
    """SwiGLU of one gate-up product."""
    kernels, vllm = bench.kernels, bench.vllm
    for width in bench.pick((3072, 8192, 14336), (32,)):
        for count in bench.pick((1, 64, 1024, 8192), (1, 3)):

            def inputs(count: int = count, width: int = width) -> Inputs:
                return {"x": bench.randn(count, 2 * width), "out": bench.empty(count, width)}

            contenders: dict[str, Contender] = {
                "octavo": lambda a: kernels.silu_and_mul(a["x"], a["out"]),
                "eager": lambda a: eager_swiglu(a["x"]),
            }
            if vllm is not None:
                contenders["vllm"] = lambda a: vllm.ops.silu_and_mul(a["out"], a["x"])
            yield Case("SwiGLU", f"T={count} I={width}", 3 * SIZE * count * width, inputs, contenders)


def rotations(bench: Bench) -> Iterator[Case]:
    """RoPE alone, beside Hugging Face's eager form; then with the write into blocks, beside vLLM's two operators."""
    kernels, vllm = bench.kernels, bench.vllm
    heads, kv_heads, dim = bench.pick((32, 8, 128), (4, 2, 16))
    for count in bench.pick((1, 16, 64, 512, 2048, 8192, 32768), (1, 3)):
        blocks = 2 * (-(-count // PAGE))

        def inputs(count: int = count, blocks: int = blocks) -> Inputs:
            layout = KvLayout(1, kv_heads, dim, PAGE, DTYPE)
            cos_sin = torch.randn(count, dim, device=bench.device)
            qkv = bench.randn(count, (heads + 2 * kv_heads) * dim)
            rows = qkv.view(count, -1, dim)
            cos, sin = (part.repeat(1, 2).to(DTYPE)[None, None] for part in cos_sin.chunk(2, dim=1))
            return {
                "qkv": qkv,
                "q": rows[:, :heads],
                "k": rows[:, heads : heads + kv_heads],
                "v": rows[:, heads + kv_heads :],
                "q_eager": bench.randn(1, heads, count, dim),
                "k_eager": bench.randn(1, kv_heads, count, dim),
                "cos": cos,
                "sin": sin,
                "cos_sin": cos_sin,
                "cos_sin_dtype": cos_sin.to(DTYPE),
                "positions": torch.arange(count, device=bench.device),
                "slots": torch.randperm(blocks * PAGE, device=bench.device)[:count],
                "kv": layout.view(layout.allocate(blocks, bench.device)),
                "pages": [bench.empty(blocks, PAGE, kv_heads, dim) for _ in range(2)],
                "one": torch.ones((), device=bench.device),
            }

        def rotate(a: Inputs) -> None:
            kernels.rotary_embedding(a["q"], a["k"], a["positions"], a["cos_sin"])

        def vllm_rotate(a: Inputs) -> None:
            assert vllm is not None
            q, k = a["q"].flatten(1), a["k"].flatten(1)
            vllm.ops.rotary_embedding(a["positions"], q, k, dim, a["cos_sin_dtype"], True)

        def vllm_both(a: Inputs) -> None:
            assert vllm is not None
            vllm_rotate(a)
            k_pages, v_pages = a["pages"]
            vllm.cache_ops.reshape_and_cache_flash(
                a["k"], a["v"], k_pages, v_pages, a["slots"], "auto", a["one"], a["one"]
            )

        alone: dict[str, Contender] = {
            "octavo": rotate,
            "eager": lambda a: eager_rotary(a["q_eager"], a["k_eager"], a["cos"], a["sin"]),
        }
        written: dict[str, Contender] = {"octavo": _rotate_and_write(kernels, heads, kv_heads)}
        if vllm is not None:
            alone["vllm"], written["vllm"] = vllm_rotate, vllm_both
        shape = f"T={count} HQ={heads} HK={kv_heads} D={dim}"
        yield Case("RoPE", shape, 2 * SIZE * count * (heads + kv_heads) * dim, inputs, alone)
        yield Case("RoPE + KV write", shape, 2 * SIZE * count * (heads + 2 * kv_heads) * dim, inputs, written)


def _rotate_and_write(kernels: ModuleType, heads: int, kv_heads: int) -> Contender:
    """One launch where the backend has it."""

    def fused(a: Inputs) -> None:
        kernels.rotate_and_write(
            a["qkv"], None, None, EPS, a["cos_sin"], a["positions"], a["kv"], 0, a["slots"], heads, kv_heads
        )

    def apart(a: Inputs) -> None:
        kernels.rotary_embedding(a["q"], a["k"], a["positions"], a["cos_sin"])
        kernels.write_kv(a["k"], a["v"], a["kv"], 0, a["slots"])

    return fused if hasattr(kernels, "rotate_and_write") else apart


def _pages(
    bench: Bench, queries: list[int], contexts: list[int], heads: int, kv_heads: int, dim: int
) -> Callable[[], Inputs]:
    """A flat batch: its blocks lie in random order, in Octavo's layout and in FlashAttention's."""

    def inputs() -> Inputs:
        needed = [-(-length // PAGE) for length in contexts]
        total, width = sum(needed), max(needed)
        order = torch.randperm(total, dtype=torch.int32)
        tables = torch.zeros(len(contexts), width, dtype=torch.int32)
        starts = [0]
        for row, count in enumerate(needed):
            begin = sum(needed[:row])
            tables[row, :count] = order[begin : begin + count]
            starts.append(starts[-1] + queries[row])
        positions = [torch.arange(c - q, c) for q, c in zip(queries, contexts, strict=True)]
        layout = KvLayout(1, kv_heads, dim, PAGE, DTYPE)
        cache = layout.allocate(total, bench.device)
        kv = layout.view(cache)
        for begin in range(0, total, 4096):  # in parts: random numbers are made in float32
            part = kv[begin : begin + 4096]
            part.copy_(torch.randn(part.shape, device=bench.device))
        on = {"device": bench.device}
        meta = AttentionMetadata(
            query_start=torch.tensor(starts, dtype=torch.int32, **on),
            context_len=torch.tensor(contexts, dtype=torch.int32, **on),
            block_tables=tables.to(bench.device),
            positions=torch.cat(positions).to(bench.device),
            slots=torch.zeros(starts[-1], dtype=torch.int64, **on),
            max_query=max(queries),
            max_context=max(contexts),
        )
        q = bench.randn(starts[-1], heads, dim)
        return {
            "q": q,
            "kv": kv,
            "meta": meta,
            "scale": dim**-0.5,
            "out": torch.empty_like(q),
            "k_own": bench.randn(starts[-1], kv_heads, dim),
            "v_own": bench.randn(starts[-1], kv_heads, dim),
            # FlashAttention's pages, [blocks, PAGE, HK, D]: the same memory would have other strides, so a copy
            "k_pages": kv[:, 0, 0].transpose(1, 2).contiguous(),
            "v_pages": kv[:, 0, 1].transpose(1, 2).contiguous(),
            "query_start": meta.query_start,
            "context_len": meta.context_len,
            "tables": meta.block_tables,
            "max_query": meta.max_query,
            "max_context": meta.max_context,
        }

    return inputs


def _attention(bench: Bench) -> dict[str, Contender]:
    """Everyone who reads pages."""
    kernels, vllm = bench.kernels, bench.vllm
    contenders: dict[str, Contender] = {
        "octavo": lambda a: kernels.paged_attention(a["q"], a["kv"], 0, a["meta"], a["scale"], a["out"])
    }
    if vllm is not None:
        contenders["vllm triton"] = vllm.triton_attention
        contenders["fa3"] = vllm.flash_attention
    return contenders


def decodes(bench: Bench) -> Iterator[Case]:
    """One row a sequence. Skewed: an eighth of the sequences have half of all tokens."""
    heads, kv_heads, dim = bench.pick((32, 8, 128), (4, 2, 16))
    for batch in bench.pick((1, 16, 64, 256), (1, 8)):
        for length in bench.pick((512, 4096, 32768), (40,)):
            if batch * length > 256 * 4096 * 2:
                continue  # more memory than a cache of one layer has
            for kind in ("even", "skewed") if batch >= 8 else ("even",):
                contexts = [length] * batch
                if kind == "skewed":
                    few = batch // 8
                    contexts = [4 * length] * few + [max(1, length * 4 // 7)] * (batch - few)
                tokens = sum(contexts)
                moved = 2 * SIZE * (tokens * kv_heads + batch * heads) * dim
                inputs = _pages(bench, [1] * batch, contexts, heads, kv_heads, dim)
                shape = f"B={batch} L={length} {kind} HQ={heads} HK={kv_heads} D={dim}"
                yield Case("paged decode attention", shape, moved, inputs, _attention(bench))


def prefills(bench: Bench) -> Iterator[Case]:
    """Whole prompts, and a chunk that looks back on cached context."""
    heads, kv_heads, dim = bench.pick((32, 8, 128), (4, 2, 16))
    real = ((1, 1024, 0), (1, 2048, 0), (1, 4096, 0), (1, 8192, 0), (8, 1024, 0), (1, 2048, 14336))
    for batch, count, cached in bench.pick(real, ((1, 20, 0), (2, 5, 16))):
        pairs = batch * (count * cached + count * (count + 1) // 2)
        moved = 2 * SIZE * batch * ((count + cached) * kv_heads + count * heads) * dim
        inputs = _pages(bench, [count] * batch, [count + cached] * batch, heads, kv_heads, dim)
        contenders = _attention(bench)
        if bench.device.type == "cuda":
            contenders["octavo"] = _prefill
        if not cached:
            contenders["sdpa, contiguous"] = _sdpa
        shape = f"B={batch} T={count} cached={cached} HQ={heads} HK={kv_heads} D={dim}"
        yield Case(
            "paged prefill attention",
            shape,
            moved,
            inputs,
            contenders,
            flops=4 * heads * dim * pairs,
            bound="arithmetic",
        )


def _prefill(a: Inputs) -> None:
    """As the engine calls it: the chunk's own keys and values lie beside its queries."""
    from octavo.kernels.triton.cache import KvPlace
    from octavo.kernels.triton.prefill import prefill

    own = a["k_own"], a["v_own"]
    prefill(a["q"], own, KvPlace.of(a["kv"], 0), a["meta"], a["scale"], a["out"], None, 0.0, None)


def _sdpa(a: Inputs) -> torch.Tensor:
    """PyTorch's own attention on keys and values that were never paged."""
    batch = a["context_len"].shape[0]
    q, k, v = (each.view(batch, -1, *each.shape[1:]).transpose(1, 2) for each in (a["q"], a["k_own"], a["v_own"]))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=a["scale"], enable_gqa=True)


def samplings(bench: Bench) -> Iterator[Case]:
    """A draw for each row, its log-probability beside it; then with a nucleus."""
    kernels, vllm = bench.kernels, bench.vllm
    for batch, vocab in bench.pick(((1, 151936), (64, 151936), (256, 151936), (256, 32000)), ((2, 300),)):

        def inputs(batch: int = batch, vocab: int = vocab) -> Inputs:
            on = {"device": bench.device}
            rng = random.Random(batch)
            return {
                "logits": 3 * bench.randn(batch, vocab),
                "temperature": torch.full((batch,), 0.6, **on),
                "top_k": torch.zeros(batch, dtype=torch.int32, **on),
                "all": torch.ones(batch, **on),
                "top_p": torch.full((batch,), 0.95, **on),
                "min_p": torch.zeros(batch, **on),
                "seeds": torch.tensor([rng.getrandbits(63) for _ in range(batch)], **on),
                "indexes": torch.zeros(batch, dtype=torch.int64, **on),
                "positions": torch.arange(batch, **on),
                "rows": torch.arange(batch, dtype=torch.int32, **on),
            }

        def draw(a: Inputs, top_p: str) -> torch.Tensor:
            rows, limits = a["positions"], (a["temperature"], a["top_k"], a[top_p], a["min_p"])
            return kernels.draw(a["logits"], None, rows, a["indexes"], rows, *limits, a["seeds"]).tokens

        plain: dict[str, Contender] = {
            "octavo": lambda a: draw(a, "all"),
            "eager": lambda a: eager_sample(a["logits"], a["temperature"]),
        }
        if vllm is not None:
            plain["vllm"] = lambda a: vllm.gumbel_sample(
                a["logits"], a["rows"], a["temperature"], a["seeds"], a["positions"], apply_temperature=True
            )
        nucleus: dict[str, Contender] = {
            "octavo": lambda a: draw(a, "top_p"),
            "eager": lambda a: eager_top_p(a["logits"], a["temperature"], a["top_p"]),
        }
        shape = f"B={batch} V={vocab} bfloat16"
        yield Case("sampling", shape, SIZE * batch * vocab, inputs, plain)
        yield Case("sampling, top-p 0.95", shape, SIZE * batch * vocab, inputs, nucleus)


FAMILIES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "norm": norms,
    "activation": activations,
    "rope": rotations,
    "decode": decodes,
    "prefill": prefills,
    "sampling": samplings,
}
