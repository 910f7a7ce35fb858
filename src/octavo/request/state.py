"""Where a sequence stands, and why it ended."""

from __future__ import annotations

from enum import Enum, StrEnum


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  #: holds no blocks on the device
    RUNNING = "running"  #: holds blocks and a slot
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  #: end-of-sequence, a stop token or a stop string
    LENGTH = "length"  #: max_tokens, or the end of the context
    ABORT = "abort"  #: the caller withdrew it
    ERROR = "error"  #: it failed: ``RequestOutput.error`` says of what
