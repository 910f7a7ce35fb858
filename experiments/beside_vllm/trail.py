"""What an engine did with a stream, step by step, in words that both engines share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from beside_vllm.stream import Arrival, Stream


@dataclass
class Step:
    """One step. Blocks are counted after planning, before anything that the step brings is taken in."""

    admitted: list[tuple[str, int]] = field(default_factory=list)  #: (row, cached tokens it begins with)
    resumed: list[tuple[str, int]] = field(default_factory=list)  #: the same, coming back after a preemption
    chunks: list[tuple[str, int, int]] = field(default_factory=list)  #: (row, first position, tokens)
    preempted: list[str] = field(default_factory=list)
    evicted: list[str] = field(default_factory=list)  #: contents that leave the cache, in order; ``*``: a copy stays
    stale: list[str] = field(default_factory=list)  #: reads of memory that does not hold what it should
    used: int = 0
    cached: int = 0  #: idle blocks whose content can be found


@dataclass
class Trail:
    """All steps of one run."""

    steps: list[Step] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)  #: row -> the step that brought its last token
    first_token: dict[str, int] = field(default_factory=dict)  #: row -> the step that brought its first token

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for the other process."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Trail:
        """The inverse of :meth:`as_dict`, from JSON."""
        steps = []
        for each in data["steps"]:
            pairs = {name: [tuple(entry) for entry in each[name]] for name in ("admitted", "resumed", "chunks")}
            steps.append(Step(**{**each, **pairs}))
        return cls(steps, data["finished"], data["first_token"])

    @property
    def admitted(self) -> list[str]:
        """Rows in the order in which they first computed."""
        return [name for step in self.steps for name, _ in step.admitted]

    @property
    def hits(self) -> dict[str, int]:
        """Row -> cached tokens at its first admission."""
        return {name: count for step in self.steps for name, count in step.admitted}

    @property
    def evicted(self) -> list[str]:
        """Contents in the order in which they left the cache."""
        return [name for step in self.steps for name in step.evicted]

    @property
    def preempted(self) -> list[str]:
        """Rows in the order in which they lost their blocks."""
        return [name for step in self.steps for name in step.preempted]

    @property
    def stale(self) -> list[str]:
        """Every wrong read."""
        return [f"step {i}: {text}" for i, step in enumerate(self.steps) for text in step.stale]

    def summary(self, stream: Stream) -> dict[str, Any]:
        """The figures of a table. Steps stand for time; a token that comes in the step of arrival has taken one."""
        evicted, steps = self.evicted, max(1, len(self.steps))
        figures: dict[str, Any] = {
            "steps": len(self.steps),
            "tokens computed": sum(count for step in self.steps for _, _, count in step.chunks),
            "cached tokens, first admission": sum(self.hits.values()),
            "cached tokens, coming back": sum(count for step in self.steps for _, count in step.resumed),
            "blocks evicted": sum(not name.endswith("*") for name in evicted),
            "copies evicted": sum(name.endswith("*") for name in evicted),
            "preemptions": len(self.preempted),
            "blocks held, peak": max((step.used for step in self.steps), default=0),
            "blocks held, mean": round(sum(step.used for step in self.steps) / steps, 2),
            "steps to first token, mean": self._mean_wait(self.first_token, stream.arrivals),
        }
        priorities = sorted({arrival.priority for arrival in stream.arrivals})
        for priority in priorities if len(priorities) > 1 else ():
            of_it = [arrival for arrival in stream.arrivals if arrival.priority == priority]
            figures[f"steps to first token, mean, priority {priority}"] = self._mean_wait(self.first_token, of_it)
        figures["steps to last token, mean"] = self._mean_wait(self.finished, stream.arrivals)
        figures["stale reads"] = len(self.stale)
        return figures

    @staticmethod
    def _mean_wait(reached: dict[str, int], arrivals: Iterable[Arrival]) -> float:
        waits = [reached[row] - arrival.step + 1 for arrival in arrivals for row in arrival.rows() if row in reached]
        return round(sum(waits) / max(1, len(waits)), 2)
