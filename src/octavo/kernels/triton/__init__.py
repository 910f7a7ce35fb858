"""The kernels in Triton, for NVIDIA GPUs from compute capability 8.0 on (extra ``octavo[gpu]``).

Tensors lie on the GPU; nothing here waits for it. Launch shapes come from static tables beside each kernel, by shape
and architecture, so that nothing is tuned at run time and a launch in a CUDA graph is the launch outside of it.
"""

from __future__ import annotations

from octavo.kernels.triton.activation import gelu_and_mul, silu_and_mul
from octavo.kernels.triton.cache import write_kv
from octavo.kernels.triton.norm import add_rms_norm, rms_norm
from octavo.kernels.triton.rotary import rotary_embedding, rotate_and_write

__all__ = [
    "add_rms_norm",
    "gelu_and_mul",
    "rms_norm",
    "rotary_embedding",
    "rotate_and_write",
    "silu_and_mul",
    "write_kv",
]
