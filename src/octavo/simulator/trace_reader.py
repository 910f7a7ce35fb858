"""From a file to a :class:`~octavo.simulator.trace.Trace`: everything is checked before anything is replayed."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

from octavo.errors import ConfigError, TraceError
from octavo.simulator import azure, mooncake
from octavo.simulator.trace import Trace, TraceRequest
from octavo.simulator.trace_row import Line, RowError

_GZIP = b"\x1f\x8b"


def read_trace(path: str | Path, *, piece: int = 512) -> Trace:
    """Read a request trace, plain or gzipped; what it is, is seen from its content.

    Args:
        path: of a JSON-lines file as Mooncake publishes them (:mod:`~octavo.simulator.mooncake`), or of a CSV file as
            Azure does (:mod:`~octavo.simulator.azure`).
        piece: tokens that each entry of ``hash_ids`` covers.

    Raises:
        TraceError: the file cannot be read, or a line is not what it must be; the message names file and line.
        ConfigError: ``piece`` is not positive.
    """
    if piece < 1:
        raise ConfigError(f"piece={piece} must be a positive number of tokens")
    path = Path(path)
    lines = _lines(path)
    if not lines:
        raise TraceError(f"{path}, line 1: the file is empty; a request trace was expected")
    known = "a trace is JSON lines (timestamp, input_length, output_length, hash_ids) or CSV (TIMESTAMP, ...)"
    opening = lines[0].text.lstrip()
    if opening.startswith("{"):
        name, rows = "mooncake", mooncake.rows(lines, piece)
    elif opening.startswith("["):
        raise TraceError(f"{path}, line {lines[0].number}: a JSON array; {known}, one request a line")
    elif "," in opening:
        name, rows = "azure", azure.rows(lines)
    else:
        raise TraceError(f"{path}, line {lines[0].number}: neither an object nor a header of columns; {known}")
    try:
        intake = _Intake()
        requests = tuple(intake.take(line, request) for line, request in rows)
    except RowError as error:
        raise TraceError(f"{path}, line {error.line}: {error}") from None
    if not requests:
        raise TraceError(f"{path}, line {lines[-1].number}: the header is all there is; no request follows")
    return Trace(path.name, name, requests, piece, len(intake.number))


class _Intake:
    """What must hold from row to row: times do not run backwards, and an id always follows the same id."""

    def __init__(self) -> None:
        self.number: dict[int, int] = {}  # the file's ids, numbered densely in order of appearance
        self._parents: list[int] = []  # by number; -1 for one that begins prompts
        self._began: float | None = None
        self._latest = 0.0

    def take(self, line: int, request: TraceRequest) -> TraceRequest:
        if self._began is None:
            self._began = self._latest = request.arrival
        if request.arrival < self._latest:
            raise RowError(
                line,
                f"the request comes {self._latest - request.arrival:g} s before the one above it: sort by time",
            )
        self._latest = request.arrival
        return replace(request, arrival=request.arrival - self._began, contents=self._numbered(line, request.contents))

    def _numbered(self, line: int, ids: tuple[int, ...]) -> tuple[int, ...]:
        numbers: list[int] = []
        parent = -1
        for entry in ids:
            known = self.number.setdefault(entry, len(self._parents))
            if known == len(self._parents):
                self._parents.append(parent)
            elif self._parents[known] != parent:
                raise RowError(
                    line,
                    f"hash id {entry} follows another id than it did above: an id stands for the whole prompt up to "
                    "its end, so it has one predecessor",
                )
            numbers.append(known)
            parent = known
        return tuple(numbers)


def _lines(path: Path) -> list[Line]:
    """The lines that are not blank."""
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        text = content.decode("utf-8-sig")
    except OSError as error:  # a broken gzip file is one, too
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path} cannot be unzipped: {error}") from None
    except UnicodeDecodeError as error:
        before = error.object[: error.start].count(b"\n") + 1
        raise TraceError(f"{path}, line {before}: not text in UTF-8") from None
    return [Line(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
