"""The kernels on a CPU, compiled by Numba: see ``octavo.kernels`` for what each does."""

from __future__ import annotations

from octavo.kernels.cpu.attention import decodes, fused_attention, paged_attention, write_kv
from octavo.kernels.cpu.grouped_linear import GroupedPanelLinear
from octavo.kernels.cpu.int8_linear import Int8PanelLinear
from octavo.kernels.cpu.jit import warm_up
from octavo.kernels.cpu.launch import set_num_threads
from octavo.kernels.cpu.linear import PanelLinear
from octavo.kernels.cpu.program import Program, recording
from octavo.kernels.cpu.rows import add_rms_norm, copy_blocks, gelu_and_mul, rms_norm, rotary_embedding, silu_and_mul
from octavo.kernels.cpu.sampling import greedy, log_softmax_gather, sample, top_logprobs
from octavo.kernels.reference.quantized import QuantizedLinear

QUANTIZED_LINEARS = (Int8PanelLinear, GroupedPanelLinear, QuantizedLinear)

__all__ = [
    "QUANTIZED_LINEARS",
    "GroupedPanelLinear",
    "Int8PanelLinear",
    "PanelLinear",
    "Program",
    "add_rms_norm",
    "copy_blocks",
    "decodes",
    "fused_attention",
    "gelu_and_mul",
    "greedy",
    "log_softmax_gather",
    "paged_attention",
    "recording",
    "rms_norm",
    "rotary_embedding",
    "sample",
    "set_num_threads",
    "silu_and_mul",
    "top_logprobs",
    "warm_up",
    "write_kv",
]
