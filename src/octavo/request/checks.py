"""What the fields of SamplingParams may hold. Each check raises SamplingParamsError naming the field and the fix."""

from __future__ import annotations

import math
from collections.abc import Mapping

from octavo.errors import SamplingParamsError

_MAX_INT32 = 2**31 - 1


def integer(
    name: str, value: object, *, low: int | None = None, high: int | None = None, optional: bool = False
) -> None:
    """``value`` is an integer from ``low`` up to ``high`` [int32's largest], or may be None."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise SamplingParamsError(f"{name} must be an integer, not {value!r}")
    high = _MAX_INT32 if high is None else high
    if (low is not None and value < low) or value > high:
        raise SamplingParamsError(f"{name}={value} is out of range: use {low} to {high}")


def number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    optional: bool = False,
) -> None:
    """``value`` is a finite number from ``low`` (or, with ``low_open``, above it) to ``high``, or may be None."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SamplingParamsError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise SamplingParamsError(f"{name}={value} is not finite")
    if low is not None and (value < low or (low_open and value == low)):
        raise SamplingParamsError(f"{name}={value} must be {'above' if low_open else 'at least'} {low}")
    if high is not None and value > high:
        raise SamplingParamsError(f"{name}={value} must be at most {high}")


def token_ids(name: str, value: object) -> None:
    """``value`` is a list of token ids, or None."""
    if value is None:
        return
    if not isinstance(value, list | tuple):
        raise SamplingParamsError(f"{name} must be a list of token ids, not {value!r}")
    for item in value:
        integer(f"{name} entry", item, low=0)


def logit_bias(value: object) -> None:
    """``value`` maps token ids to numbers from -100 to 100, or is None."""
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise SamplingParamsError(f"logit_bias must map token ids to numbers, not {value!r}")
    for token, bias in value.items():
        integer("logit_bias key", token, low=0)
        number("logit_bias value", bias, low=-100.0, high=100.0)


def strings(name: str, value: object) -> None:
    """``value`` is a list of strings that are not empty, or None."""
    if value is None:
        return
    if not isinstance(value, list | tuple):
        raise SamplingParamsError(f"{name} must be a list of strings, not {value!r}")
    for item in value:
        if not isinstance(item, str) or not item:
            raise SamplingParamsError(f"{name} holds {item!r}: every entry must be a string that is not empty")
