"""What has been measured, in one file that grows slice by slice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Slice:
    """One workload on one model at one precision, by engines that took turns. Ratios hold within a slice only."""

    model: str
    precision: str
    workload: str
    when: str  #: date and time, UTC
    scale: float  #: of the number of requests
    engines: dict[str, dict[str, Any]]  #: name -> samples (each a list over the rounds), versions, load, memory
    roofline: dict[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> tuple[str, str, str]:
        """Slices in the same place say the same, but for who took part."""
        return self.model, self.precision, self.workload


@dataclass(slots=True)
class Results:
    """A file of slices, and the machine that they were measured on."""

    machine: dict[str, Any]
    slices: list[Slice]

    @classmethod
    def read(cls, file: Path, machine: dict[str, Any]) -> Results:
        """What the file has, to be added to.

        Raises:
            SystemExit: its figures are another machine's.
        """
        if not file.exists():
            return cls(machine, [])
        data = json.loads(file.read_text())
        ours, theirs = ({name: data[name] for name in ("cpu", "flags", "cores")} for data in (machine, data["machine"]))
        if ours != theirs:
            raise SystemExit(f"{file} was measured on {theirs}, this is {ours}: give another --out")
        return cls(data["machine"], [Slice(**each) for each in data["slices"]])

    def add(self, new: Slice) -> None:
        """Take a slice in; older ones in its place go where everyone in them has been measured again."""
        self.slices = [
            old for old in self.slices if old.place != new.place or not old.engines.keys() <= new.engines.keys()
        ]
        self.slices.append(new)

    def write(self, file: Path) -> None:
        """Save, all or nothing."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        data = {"machine": self.machine, "slices": [asdict(each) for each in self.slices]}
        partial.write_text(json.dumps(data, indent=1) + "\n")
        partial.replace(file)
