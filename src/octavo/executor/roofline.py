"""What this machine would allow: how fast it reads, how fast it multiplies, and what of that a model needs at least.

(Williams et al., "Roofline", CACM 2009: a computation is bound by the slower of its bytes and its operations.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from octavo.executor.memory_plan import MemoryPlan
from octavo.model import Decoder
from octavo.plan import ModelFacts

_SECONDS = 0.3
"""That one thing is measured for, after three runs of it."""
_ROWS = (32, 128, 256, 512, 1024)
_GPU_ROWS = (256, 1024, 2048, 4096)
_LEAST_BYTES, _MOST_BYTES = 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Roofline:
    """Two rates of the machine, as measured, and what the model needs of both."""

    bytes_per_second: float  #: read by all threads, again and again from as much memory as the weights take
    flops_per_second: float  #: of the model's own matrix products, at the number of rows that suits them best
    best_rows: int  #: that number
    weight_bytes: int  #: read by every step
    kv_bytes_per_token: float  #: read by a step for each token of context
    flops_per_token: float  #: of the layers' products
    head_flops: float  #: for each token drawn
    gpu: str = ""  #: whose rates these are; "": the processor's

    def least_seconds(self, *, steps: int, tokens: int, draws: int, context: int = 0) -> tuple[float, str]:
        """The least time that work can take on this machine, and what binds it: "memory" or "products".

        Args:
            steps: how many times the weights are read.
            tokens: put through the layers, all steps together.
            draws: tokens whose logits are computed.
            context: tokens whose keys and values are read, all steps together.
        """
        reading = (steps * self.weight_bytes + context * self.kv_bytes_per_token) / self.bytes_per_second
        multiplying = (tokens * self.flops_per_token + draws * self.head_flops) / self.flops_per_second
        return (reading, "memory") if reading >= multiplying else (multiplying, "products")


class Measurable(Protocol):
    """An executor with a model in memory."""

    @property
    def facts(self) -> ModelFacts:
        """The model and its memory."""

    @property
    def decoder(self) -> Decoder:
        """The model."""

    memory_plan: MemoryPlan


def measure(executor: Measurable) -> Roofline:
    """Find out; takes some seconds. Nothing that the executor holds is changed but its buffers; on a GPU nothing may
    have been generated yet, for graphs would hold on to those."""
    decoder, facts = executor.decoder, executor.facts
    config, weight_bytes, device = decoder.config, decoder.bytes_per_step, decoder.device
    on_gpu = device.type == "cuda"
    wait = partial(torch.cuda.synchronize, device) if on_gpu else _nobody_waits
    sizes = _GPU_ROWS if on_gpu else _ROWS
    rates = {rows: rows * config.flops_per_token / _seconds(partial(decoder.multiply, rows), wait) for rows in sizes}
    best = max(rates, key=lambda rows: rates[rows])
    return Roofline(
        bytes_per_second=_device_bandwidth(device, wait) if on_gpu else read_bandwidth(weight_bytes),
        flops_per_second=rates[best],
        best_rows=best,
        weight_bytes=weight_bytes,
        kv_bytes_per_token=facts.page_bytes * len(facts.groups) / executor.memory_plan.block_size,
        flops_per_token=config.flops_per_token,
        head_flops=2.0 * config.hidden_size * config.vocab_size,
        gpu=torch.cuda.get_device_name(device) if on_gpu else "",
    )


def _device_bandwidth(device: torch.device, wait: Callable[[], object]) -> float:
    """Bytes a second that a device reads of its memory, 1 GiB at a time: far more than any of its caches holds."""
    words = torch.ones(_MOST_BYTES // 4, device=device)
    return _MOST_BYTES / _seconds(words.sum, wait)


def read_bandwidth(num_bytes: int) -> float:
    """Bytes a second read by all threads from ``num_bytes`` of memory (between 1 MiB and 1 GiB of it), over and over:
    what fits a cache is read from there, as weights of that size would be."""
    # Here, for it is compiled when it is first used, and only who measures needs it.
    from octavo.kernels.cpu.stream import STEP, checksum

    size = max(_LEAST_BYTES, min(num_bytes, _MOST_BYTES)) // STEP * STEP
    words = torch.ones(size // 8, dtype=torch.int64)
    return size / _seconds(lambda: checksum(words), _nobody_waits)


def _nobody_waits() -> None:
    """An action is done when it returns."""


def _seconds(action: Callable[[], object], wait: Callable[[], object]) -> float:
    """The least time of a few runs, each until ``wait`` returns."""
    best, spent, runs = math.inf, 0.0, 0
    while runs < 3 or spent < _SECONDS:
        began = time.perf_counter()
        action()
        wait()
        seconds = time.perf_counter() - began
        best, spent, runs = min(best, seconds), spent + seconds, runs + 1
    return best
