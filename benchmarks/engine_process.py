"""An engine in a process of its own, as the benchmarks' drivers see it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ENGINES = Path(__file__).parent / "engines"


class EngineProcess:
    """An engine in a process group of its own, stopped while it has nothing to do.

    Args:
        name: "octavo", "vllm" and so on, up to a hyphen: ``engines/NAME_engine.py`` is run.
        python: the interpreter of the venv that has the engine.
        model: the folder or file that it loads.
        options: for the script.
        log: where its own words go.
        environment: added to this process's; None takes a variable out.
    """

    def __init__(
        self,
        name: str,
        python: str,
        model: Path,
        options: dict[str, Any],
        log: Path,
        environment: Mapping[str, str | None] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [python, str(ENGINES / f"{name.split('-')[0]}_engine.py"), str(model), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,
            env={name: value for name, value in {**os.environ, **(environment or {})}.items() if value is not None},
        )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - began
        self.load_seconds, self.versions = ready["ready"], ready["versions"]
        self._signal(signal.SIGSTOP)

    def run(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Wake it up, have the workload computed, put it to sleep."""
        self._signal(signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(workload) + "\n")
        self.process.stdin.flush()
        report = self._answer()
        self._signal(signal.SIGSTOP)
        return report

    def peak_bytes(self) -> int:
        """The most memory that the group's processes have held, each at its own worst moment (0: the system does not
        tell)."""
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getpgid(int(status.parent.name)) != self.process.pid:
                    continue
                lines = status.read_text().splitlines()
            except OSError:
                continue
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        return total

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            self._signal(signal.SIGKILL)
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended; its last words:\n{self.log.read_text()[-3000:]}")
        return dict(json.loads(line))

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)
