"""The kernels in Triton, for NVIDIA GPUs from compute capability 8.0 on (extra ``octavo[gpu]``).

Tensors lie on the GPU; nothing here waits for it. Launch shapes come from static tables beside each kernel, by shape
and architecture, so that nothing is tuned at run time and a launch in a CUDA graph is the launch outside of it.
"""

from __future__ import annotations

from octavo.kernels.triton.activation import gelu_and_mul, silu_and_mul
from octavo.kernels.triton.attention import fused_attention, paged_attention
from octavo.kernels.triton.blocks import copy_blocks
from octavo.kernels.triton.cache import write_kv
from octavo.kernels.triton.edits import edit_logits
from octavo.kernels.triton.logprobs import log_softmax_gather, top_logprobs
from octavo.kernels.triton.norm import add_rms_norm, rms_norm
from octavo.kernels.triton.rotary import rotary_embedding, rotate_and_write
from octavo.kernels.triton.sampling import draw, greedy, sample
from octavo.kernels.triton.threads import set_num_threads, warm_up

__all__ = [
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
    "rotate_and_write",
    "sample",
    "set_num_threads",
    "silu_and_mul",
    "top_logprobs",
    "warm_up",
    "write_kv",
]
