"""A line of a trace file, and the checks that every format's rows must pass."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """A line that is not blank."""

    number: int  #: the first line is 1
    text: str


class RowError(Exception):
    """A row is not what it must be; the reader adds the file's name."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def whole(line: int, name: str, value: object, least: int) -> int:
    """``value`` as an integer of at least ``least`` and at most 2**31 - 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(line, f"{name} must be a whole number, not {value!r}")
    if not least <= value < 2**31:
        raise RowError(line, f"{name}={value} is out of range: {least} to {2**31 - 1}")
    return value
