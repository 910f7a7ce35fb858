"""What a step costs on a machine that is not there: a sum of a few products, and the numbers of some machines."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from octavo.config import unknown_keyword
from octavo.errors import ConfigError
from octavo.plan import StepPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearCost:
    """Seconds that a step takes, as a linear function of what is in its plan.

    Args:
        step: for every step, whatever it does: launching it, and reading the weights once.
        prefill_token: for each token of a chunk of two or more.
        decode_sequence: for each chunk of one token.
        context_token: for each token of context that such a chunk reads.
        attended_pair: for each (query, key) pair of the longer chunks.
        copied_byte: for each byte moved within the device (copy-on-write).
        swapped_byte: for each byte moved between device and host.
        transfer: for each block moved between device and host, beside its bytes.

    Raises:
        ConfigError: a number is negative or not finite.
    """

    step: float
    prefill_token: float
    decode_sequence: float
    context_token: float
    attended_pair: float = 0.0
    copied_byte: float = 0.0
    swapped_byte: float = 0.0
    transfer: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise ConfigError(f"{item.name}={value!r} must be a number of seconds, 0 or more")

    def seconds(self, plan: StepPlan, block_bytes: int) -> float:
        """What the plan costs; 0 where it does nothing."""
        prefill = decodes = context = pairs = 0
        for chunk in plan.chunks:
            start, count = chunk[2], chunk[3]
            if count == 1:
                decodes += 1
                context += start + 1
            else:
                prefill += count
                pairs += count * start + count * (count + 1) // 2
        swaps = len(plan.swap_out) + len(plan.swap_in)
        if not plan.chunks and not swaps and not plan.copies:
            return 0.0
        return (
            self.step
            + prefill * self.prefill_token
            + decodes * self.decode_sequence
            + context * self.context_token
            + pairs * self.attended_pair
            + len(plan.copies) * block_bytes * self.copied_byte
            + swaps * (block_bytes * self.swapped_byte + self.transfer)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A model on a machine."""

    about: str  #: what it is, and where the numbers come from
    cost: LinearCost
    kv_token_bytes: int  #: KV memory of one token, all layers
    kv_bytes: int  #: memory left for KV beside the weights
    max_model_len: int  #: the model's context
    num_layers: int = 1
    flops_per_token: float = 0.0  #: to put one token through the layers, attention left out
    attention_flops: float = 0.0  #: for one token to attend to one position in one layer


_RTX_4090 = LinearCost(
    step=15.8e-3,
    prefill_token=90e-6,
    decode_sequence=0.0,
    context_token=0.24e-6,
    attended_pair=90e-6 * 32 * 16_384 / 16.06e9,  # attention computes as fast as the layers do
    copied_byte=2 / 1008e9,
    swapped_byte=1 / 25e9,
    transfer=10e-6,
)
_BANDWIDTH = 1008 / 3350  # GB/s of an RTX 4090 over those of an H100 SXM
_COMPUTE = 165.2 / 989.4  # their dense bfloat16 TFLOP/s


def _llama_8b(about: str, cost: LinearCost, kv_bytes: int) -> Machine:
    """Llama-3.1-8B in bfloat16: 32 layers, 32 heads of 128 over 8 of K and V, 8.03 billion parameters."""
    return Machine(
        about=about,
        cost=cost,
        kv_token_bytes=32 * 8 * 128 * 2 * 2,
        kv_bytes=kv_bytes,
        max_model_len=131_072,
        num_layers=32,
        flops_per_token=16.06e9,
        attention_flops=4 * 32 * 128,
    )


MACHINES: dict[str, Machine] = {
    "rtx4090-8b": _llama_8b(
        about="Llama-3.1-8B in bfloat16 on one RTX 4090. Fitted to 300 chat requests that vLLM 0.19 served on one (the "
        "recording in LLMServingSim): mean errors 2% of the time to first token, 1% of the latency, 5% of the time per "
        "token. Transfers are PCIe 4.0's nominal 25 GB/s.",
        cost=_RTX_4090,
        kv_bytes=2588 * 16 * 131_072,  # as vLLM found there
    ),
    "h100-8b": _llama_8b(
        about="Llama-3.1-8B in bfloat16 on one H100 SXM (80 GB). Not measured: the RTX 4090's numbers, those for "
        "reading memory divided by the ratio of bandwidths (3350/1008 GB/s), those for computing by that of TFLOP/s "
        "(989/165). Transfers are PCIe 5.0's nominal 50 GB/s.",
        cost=LinearCost(
            step=_RTX_4090.step * _BANDWIDTH,
            prefill_token=_RTX_4090.prefill_token * _COMPUTE,
            decode_sequence=0.0,
            context_token=_RTX_4090.context_token * _BANDWIDTH,
            attended_pair=_RTX_4090.attended_pair * _COMPUTE,
            copied_byte=_RTX_4090.copied_byte * _BANDWIDTH,
            swapped_byte=1 / 50e9,
            transfer=10e-6,
        ),
        kv_bytes=52 * 2**30,  # nine tenths of 80 GB without the weights' 16
    ),
}
"""By name."""


def machine(name: str, *, kv_bytes: int | None = None, numbers: dict[str, float] | None = None) -> Machine:
    """A known machine, perhaps with other memory or with some numbers of its cost replaced.

    Raises:
        ConfigError: the name or a number's name is unknown, or a value is out of range.
    """
    if name not in MACHINES:
        raise ConfigError(f"cost={name!r} is unknown: use one of {', '.join(MACHINES)}")
    known = MACHINES[name]
    if kv_bytes is not None:
        if kv_bytes < 1:
            raise ConfigError(f"{kv_bytes} bytes of memory must be positive")
        known = replace(known, kv_bytes=kv_bytes)
    names = [item.name for item in fields(LinearCost)]
    for each in numbers or {}:
        if each not in names:
            raise ConfigError(unknown_keyword("the cost", each, names))
    return replace(known, cost=replace(known.cost, **(numbers or {})))
