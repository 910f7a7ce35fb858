"""What a step costs on a machine that is not there: a sum of a few products, and the numbers of some machines."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

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


def with_numbers(machine: LinearCost, numbers: dict[str, float]) -> LinearCost:
    """A cost with some of its numbers replaced.

    Raises:
        ConfigError: a name is unknown, or a number negative.
    """
    known = [item.name for item in fields(LinearCost)]
    for name in numbers:
        if name not in known:
            raise ConfigError(unknown_keyword("the cost", name, known))
    return LinearCost(**{name: getattr(machine, name) for name in known} | numbers)
