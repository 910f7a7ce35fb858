"""Request traces as Mooncake publishes them (Qin et al., FAST '25): one JSON object a line.

``timestamp`` (milliseconds), ``input_length`` and ``output_length`` (tokens), and ``hash_ids``: a number for each 512
tokens of the prompt, equal where the prompt up to there is equal, the last one for what is left over. Here
``hash_ids`` may be absent, and ``priority`` and ``user`` may be there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from octavo.simulator.trace import TraceRequest
from octavo.simulator.trace_row import Line, RowError, whole

REQUIRED = ("timestamp", "input_length", "output_length")


def rows(lines: list[Line], piece: int) -> Iterator[tuple[int, TraceRequest]]:
    """Line number and request of each line; ``contents`` are the file's own ids, ``arrival`` its own seconds."""
    for number, text in lines:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RowError(number, f"not JSON: {error}") from None
        if not isinstance(value, dict):
            raise RowError(number, f"an object is expected, not {text[:40]!r}")
        yield number, _request(number, value, piece)


def _request(line: int, value: dict[str, Any], piece: int) -> TraceRequest:
    missing = [name for name in REQUIRED if name not in value]
    if missing:
        raise RowError(line, f"{', '.join(missing)} missing: a request has {', '.join(REQUIRED)} and may have hash_ids")
    time = value["timestamp"]
    if isinstance(time, bool) or not isinstance(time, int | float) or not math.isfinite(time):
        raise RowError(line, f"timestamp must be a number of milliseconds, not {time!r}")
    num_prompt = whole(line, "input_length", value["input_length"], 1)
    user = value.get("user")
    if user is not None and not isinstance(user, str):
        raise RowError(line, f"user must be a string, not {user!r}")
    priority = value.get("priority", 0)
    return TraceRequest(
        arrival=time / 1000,
        num_prompt=num_prompt,
        num_output=whole(line, "output_length", value["output_length"], 0),
        contents=_contents(line, value.get("hash_ids"), num_prompt, piece),
        priority=whole(line, "priority", priority, -(2**31)),
        user=user,
    )


def _contents(line: int, ids: object, num_prompt: int, piece: int) -> tuple[int, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, list) or not all(type(item) is int for item in ids):
        raise RowError(line, "hash_ids must be a list of whole numbers")
    wanted = -(-num_prompt // piece)
    if ids and len(ids) != wanted:
        raise RowError(
            line,
            f"{len(ids)} hash_ids for a prompt of {num_prompt} tokens: at {piece} tokens an id there must be {wanted} "
            "(--piece says how many tokens an id covers)",
        )
    return tuple(ids)
