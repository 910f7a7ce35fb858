"""The kernels in plain torch: clear, on any device, and what the fast backends are compared with.

Slow but real: an engine may run on it. Arithmetic is float32, as in every backend.
"""

from __future__ import annotations

from octavo.kernels.reference.activation import gelu_and_mul, silu_and_mul
from octavo.kernels.reference.attention import fused_attention, paged_attention
from octavo.kernels.reference.cache import copy_blocks, write_kv
from octavo.kernels.reference.edits import edit_logits
from octavo.kernels.reference.norm import add_rms_norm, rms_norm
from octavo.kernels.reference.quantized import QuantizedLinear
from octavo.kernels.reference.rotary import rotary_embedding
from octavo.kernels.reference.sampling import draw, greedy, log_softmax_gather, sample, top_logprobs
from octavo.kernels.reference.threads import set_num_threads, warm_up

QUANTIZED_LINEARS = (QuantizedLinear,)

__all__ = [
    "QUANTIZED_LINEARS",
    "QuantizedLinear",
    "add_rms_norm",
    "copy_blocks",
    "draw",
    "edit_logits",
    "fused_attention",
    "gelu_and_mul",
    "greedy",
    "log_softmax_gather",
    "paged_attention",
    "rms_norm",
    "rotary_embedding",
    "sample",
    "set_num_threads",
    "silu_and_mul",
    "top_logprobs",
    "warm_up",
    "write_kv",
]
