"""Request traces as Azure publishes them (Patel et al., Splitwise, ISCA '24): CSV with a header.

``TIMESTAMP`` (date and time), ``ContextTokens`` and ``GeneratedTokens``. They say nothing of contents.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime

from octavo.simulator.trace import TraceRequest
from octavo.simulator.trace_row import Line, RowError, whole

REQUIRED = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def rows(lines: list[Line]) -> Iterator[tuple[int, TraceRequest]]:
    """Line number and request of each line; ``arrival`` counts from the first one's time."""
    first, *rest = lines
    header = [name.strip() for name in _cells(first)]
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise RowError(first.number, f"column {', '.join(missing)} missing: the header must name {', '.join(REQUIRED)}")
    places = [header.index(name) for name in REQUIRED]
    began: datetime | None = None
    for line in rest:
        number, cells = line.number, _cells(line)
        if len(cells) != len(header):
            raise RowError(number, f"{len(cells)} columns where the header has {len(header)}")
        time, num_prompt, num_output = (cells[place].strip() for place in places)
        moment = _moment(number, time)
        began = moment if began is None else began
        try:
            arrival = (moment - began).total_seconds()
        except TypeError:
            raise RowError(number, f"TIMESTAMP {time!r} has a time zone and the first one has none, or not") from None
        yield (
            number,
            TraceRequest(
                arrival,
                whole(number, "ContextTokens", _number(num_prompt), 1),
                whole(number, "GeneratedTokens", _number(num_output), 0),
            ),
        )


def _cells(line: Line) -> list[str]:
    try:
        return next(csv.reader([line.text]))
    except csv.Error as error:
        raise RowError(line.number, f"not CSV: {error}") from None


def _moment(line: int, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise RowError(line, f"TIMESTAMP {text!r} is not a date and time, as 2023-11-16 18:17:03.9799600 is") from None


def _number(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
