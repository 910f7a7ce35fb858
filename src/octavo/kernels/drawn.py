"""What a draw on a device leaves there."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch


class DrawFailure(IntEnum):
    """Why nothing can be drawn from a row."""

    NONE = 0  #: a token was drawn
    NOT_FINITE = 1  #: the model's logits hold a NaN or an infinity
    NO_TOKEN_LEFT = 2  #: masks exclude the whole vocabulary


class Drawn(NamedTuple):
    """``D`` draws, on the device on which the logits are; nothing of it has been waited for."""

    tokens: torch.Tensor  #: int64 [D], each in the vocabulary even where the draw failed
    logprobs: torch.Tensor  #: float32 [D], of those tokens under the logits that were drawn from
    failures: torch.Tensor  #: int32 [D], each a DrawFailure
