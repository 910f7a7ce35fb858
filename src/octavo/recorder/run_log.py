"""One line of JSON for the header, one for each plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from octavo.config import SchedulerConfig
from octavo.errors import ConfigError
from octavo.plan import BlockCopy, Chunk, LayerGroup, LogHeader, SamplingSpec, SlotInit, StepPlan, Want

VERSION = 1
"""Of the format; a reader refuses others."""


class RunLog:
    """Writes every plan it is given to a file: hand it to an engine as ``recorder``.

    The header holds all that ``schedule()`` reads, and the plans hold token ids, so whoever has the log can follow
    each block; whoever should not see prompts should not see the log.

    Args:
        path: of the file; it is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 (open as long as the log is)

    def begin(self, config: SchedulerConfig) -> None:
        """Write the header."""
        self._line(asdict(LogHeader(VERSION, config.as_dict())))

    def write(self, plan: StepPlan) -> None:
        """Append a plan."""
        fields: dict[str, Any] = {"step": plan.step, "chunks": plan.chunks}
        for name in ("copies", "swap_out", "swap_in", "released", "preempted", "evicted"):
            if value := getattr(plan, name):  # most steps have none of them
                fields[name] = value
        if plan.init:
            fields["init"] = [init._replace(sampling=_changed(init.sampling)) for init in plan.init]
        self._line(fields)

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, value: object) -> None:
        self._file.write(json.dumps(value, separators=(",", ":")) + "\n")


def read_log(path: str | Path) -> tuple[LogHeader, Iterator[StepPlan]]:
    """The header, and the plans one by one, equal to those that were written.

    Raises:
        ConfigError: the file is not a run log of this version; the message names file and line.
    """
    lines = _lines(Path(path))
    number, header = next(lines, (1, {}))
    if header.get("version") != VERSION or not isinstance(header.get("config"), dict):
        raise ConfigError(f"{path}, line {number}: not the header of a run log of version {VERSION}")
    return LogHeader(**header), _plans(Path(path), lines)


def scheduler_config(header: LogHeader) -> SchedulerConfig:
    """The configuration that a run was made with."""
    values: dict[str, Any] = dict(header.config)
    groups = tuple(LayerGroup(**group) for group in values.pop("groups"))
    costs = tuple(values.pop("step_costs"))
    return SchedulerConfig(**values, groups=groups, step_costs=costs)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(value, dict):
                raise ConfigError(f"{path}, line {number}: an object is expected")
            yield number, value


def _plans(path: Path, lines: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[StepPlan]:
    for number, value in lines:
        try:
            yield _plan(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {number}: not a plan: {error!r}") from None


def _plan(value: dict[str, Any]) -> StepPlan:
    fields = {name: _tuples(entry) for name, entry in value.items()}
    fields["chunks"] = tuple(_chunk(entry) for entry in fields["chunks"])
    fields["copies"] = tuple(BlockCopy(*entry) for entry in fields.get("copies", ()))
    fields["init"] = tuple(_init(entry) for entry in fields.get("init", ()))
    return StepPlan(**fields)


def _chunk(entry: tuple[Any, ...]) -> Chunk:
    chunk = Chunk(*entry)
    return chunk._replace(want=Want(chunk.want))


def _init(entry: tuple[Any, ...]) -> SlotInit:
    init = SlotInit(*entry)
    return init._replace(sampling=SamplingSpec(**init.sampling))  # type: ignore[arg-type]


def _changed(spec: SamplingSpec) -> Any:
    """The fields of a specification that are not at their defaults."""
    plain = asdict(SamplingSpec())
    return {name: value for name, value in asdict(spec).items() if value != plain[name]}


def _tuples(value: Any) -> Any:
    """JSON has lists where plans have tuples."""
    if isinstance(value, list):
        return tuple(_tuples(entry) for entry in value)
    if isinstance(value, dict):
        return {name: _tuples(entry) for name, entry in value.items()}
    return value
