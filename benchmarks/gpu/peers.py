"""Others who do what Octavo's kernels do: eager PyTorch, PyTorch's fused operators, and vLLM's where it is installed.

The eager forms are those of Hugging Face transformers' Llama, written out: an operator a line, each reading and writing
memory.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch.nn import functional as F


def eager_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As a chain of operators in float32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def eager_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The same, of a sum."""
    residual += x
    return eager_rms_norm(residual, weight, eps)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


def eager_rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """q, k [1, heads, T, D]; cos, sin [1, 1, T, D] of their dtype."""
    return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin


def eager_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Gate and up are halves of one product."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def eager_sample(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """The exponential race of nano-vllm and vLLM's PyTorch sampler."""
    chances = torch.softmax(logits.float() / temperature[:, None], dim=-1)
    return (chances / torch.empty_like(chances).exponential_(1).clamp_min_(1e-10)).argmax(-1)


def eager_top_p(logits: torch.Tensor, temperature: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Sorted, cut, and drawn from."""
    ordered, ids = (logits.float() / temperature[:, None]).sort(dim=-1, descending=True)
    chances = ordered.softmax(-1)
    dropped = chances.cumsum(-1) - chances >= top_p[:, None]
    kept = torch.full_like(ordered, float("-inf")).scatter_(1, ids, ordered.masked_fill(dropped, float("-inf")))
    return eager_sample(kept, torch.ones_like(temperature))


class Vllm:
    """vLLM's own kernels, as far as they are installed.

    Raises:
        ImportError: they are not.
    """

    def __init__(self) -> None:
        importlib.import_module("vllm._custom_ops")  # loads the libraries of operators
        self.ops = torch.ops._C
        self.cache_ops = torch.ops._C_cache_ops
        self.flash = importlib.import_module("vllm.vllm_flash_attn").flash_attn_varlen_func
        self.unified = importlib.import_module("vllm.v1.attention.ops.triton_unified_attention").unified_attention
        self.gumbel_sample = importlib.import_module("vllm.v1.worker.gpu.sample.gumbel").gumbel_sample

    def flash_attention(self, batch: dict[str, Any], causal: bool = True) -> torch.Tensor:
        """FlashAttention 3 on pages: k and v [blocks, block_size, HK, D]."""
        return self.flash(
            q=batch["q"],
            k=batch["k_pages"],
            v=batch["v_pages"],
            max_seqlen_q=batch["max_query"],
            cu_seqlens_q=batch["query_start"],
            max_seqlen_k=batch["max_context"],
            seqused_k=batch["context_len"],
            softmax_scale=batch["scale"],
            causal=causal,
            block_table=batch["tables"],
            out=batch["out"],
            fa_version=3,
        )

    def triton_attention(self, batch: dict[str, Any]) -> None:
        """vLLM's Triton kernel on the same pages, with its sixteen segments where the batch is small."""
        segments, threshold = 16, 128 // batch["k_pages"].shape[2]
        heads, dim = batch["q"].shape[1:]
        if "segments" not in batch:
            shape = (threshold, heads, segments)
            batch["segments"] = [torch.empty(*shape, dim, device=batch["q"].device)]
            batch["segments"] += [torch.empty(shape, device=batch["q"].device) for _ in range(2)]
        parts, maxima, sums = batch["segments"]
        self.unified(
            q=batch["q"],
            k=batch["k_pages"],
            v=batch["v_pages"],
            out=batch["out"],
            cu_seqlens_q=batch["query_start"],
            max_seqlen_q=batch["max_query"],
            seqused_k=batch["context_len"],
            max_seqlen_k=batch["max_context"],
            softmax_scale=batch["scale"],
            causal=True,
            window_size=(-1, -1),
            block_table=batch["tables"],
            softcap=0.0,
            q_descale=None,
            k_descale=None,
            v_descale=None,
            seq_threshold_3D=threshold,
            num_par_softmax_segments=segments,
            softmax_segm_output=parts,
            softmax_segm_max=maxima,
            softmax_segm_expsum=sums,
        )


def load_vllm() -> tuple[Vllm | None, str]:
    """vLLM's kernels, or None and why not."""
    try:
        return Vllm(), ""
    except Exception as error:  # whatever a half-installed package raises
        return None, f"{type(error).__name__}: {error}"[:200]
