"""Every exception a user of Octavo can meet.

All derive from :class:`OctavoError`. A message names the field and says what to change. Refusals happen before
anything is changed: after one of these, the engine goes on serving its other requests.
"""

from __future__ import annotations


class OctavoError(Exception):
    """The root of Octavo's exceptions."""


class ConfigError(OctavoError, ValueError):
    """A configuration field holds a value that cannot be honoured."""


class RequestError(OctavoError, ValueError):
    """A request was refused when it arrived; nothing of it entered the engine."""


class EmptyPromptError(RequestError):
    """The prompt has no tokens."""


class InvalidTokenError(RequestError):
    """A prompt token id is not an integer, or lies outside the model's vocabulary."""


class PromptTooLongError(RequestError):
    """The prompt leaves no room for a new token in the model's context."""


class RequestTooLargeError(RequestError):
    """The request could never fit the block pool or the batch, however long it waited."""


class SamplingParamsError(RequestError):
    """A sampling parameter is out of range, of the wrong type, or contradicts another."""


class UnsupportedError(RequestError):
    """The combination asked for is not supported (for instance streaming a beam search)."""


class UnknownRequestError(OctavoError, KeyError):
    """No request has this id."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "unknown request"


class OutOfBlocksError(OctavoError, MemoryError):
    """The block pool has too few free blocks for what was asked; nothing was changed."""


class ModelError(OctavoError):
    """A model cannot be used."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model folder, or the folder lacks a file that every model has."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else "model not found"


class UnsupportedModelError(ModelError):
    """The architecture, or an option of its config.json, is not one that Octavo knows."""


class WeightsError(ModelError):
    """A checkpoint is truncated, lacks a tensor, or holds one of the wrong shape."""


class UnsafeWeightsError(ModelError):
    """The checkpoint is only to be had as a pickle, which could run code; Octavo reads safetensors alone."""


class TraceError(OctavoError, ValueError):
    """A request trace cannot be read; the message names file and line. Nothing of it was replayed."""


class EngineError(OctavoError, RuntimeError):
    """The engine failed on its own account (a bug, or the machine): not the request's fault."""
