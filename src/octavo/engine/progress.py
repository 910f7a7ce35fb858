"""How far a batch has come, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """Shows finished requests and tokens per second. On a terminal it redraws one line (with rich); elsewhere it
    prints a line every :data:`SECONDS_BETWEEN_LINES` and one at the end."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._printed = self._began
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("generating"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=None, rate="")
            self._bar.start()

    def update(self, finished: int, total: int, generated_tokens: int) -> None:
        """Show the state; the last call is the one in which all are finished."""
        now = time.monotonic()
        rate = f"{generated_tokens / max(now - self._began, 1e-9):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=finished, total=total, rate=rate)
            if finished == total:
                self._bar.stop()
        elif finished == total or now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            print(f"{finished}/{total} requests, {generated_tokens} tokens, {rate}", file=sys.stderr, flush=True)
