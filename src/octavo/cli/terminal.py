"""What goes to the person in front of the screen: bars where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from octavo.plan import ModelFacts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0
SECONDS_IN_SILENCE = 1.0
"""What is over sooner leaves no line behind that looks as if it had stopped half-way."""


def is_terminal(stream: TextIO) -> bool:
    """Whether control codes mean something on this stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO) -> Console:
    """A rich console that writes no control code where no terminal is."""
    from rich.console import Console

    if is_terminal(stream):
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, force_terminal=False, color_system=None, width=100)


def notes(facts: ModelFacts) -> list[str]:
    """What the engine chose and a person should know before reading on: not how fast which matrix product was."""
    return [note for note in facts.notes if not note.startswith("linear ")]


def read_line(prompt: str) -> str:
    """A line from the terminal without its end, as ``input`` reads it, but no Ctrl-C is lost.

    ``input`` waits inside a read: an interrupt that comes between the prompt and that read, or that the system hands
    to another of the process's threads, is noticed at the next key only. Here every signal writes to a pipe, whichever
    thread it comes to, and it is the pipe and the keyboard together that are waited for. On the main thread only.

    Raises:
        EOFError: the input has ended.
        KeyboardInterrupt: Ctrl-C.
    """
    signalled, wakes = os.pipe()
    os.set_blocking(wakes, False)
    before = signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    try:
        sys.stdout.write(prompt)
        sys.stdout.flush()
        while True:
            ready, _, _ = select.select([sys.stdin, signalled], [], [])
            if sys.stdin in ready:
                break
            os.read(signalled, 64)  # and its handler has run
    finally:
        signal.set_wakeup_fd(before)
        os.close(signalled)
        os.close(wakes)
    line = sys.stdin.readline()  # a terminal is ready when a whole line is
    if not line:
        raise EOFError
    return line.removesuffix("\n")


class LoadProgress:
    """Shows what takes long before the first token: fetching, loading, compiling. On stderr; a context manager, which
    after its end shows nothing more.

    Called with (what, done, total), ``total`` 0 while unknown.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._began = time.monotonic()
        self._printed = 0.0

    def __enter__(self) -> LoadProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._quiet = True  # whoever still calls, a step that captures a graph, would write into the text
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show the state."""
        if self._quiet:
            return
        if is_terminal(sys.stderr):
            self._draw(what, done, total)
        else:
            self._print(what, done, total)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[amount]}"),
                TimeElapsedColumn(),
                console=console(sys.stderr),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, amount="")
            self._bar.start()
        assert self._task is not None
        amount = _amount(done, total)
        self._bar.update(self._task, description=what, completed=done, total=total or None, amount=amount)

    def _print(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._began < SECONDS_IN_SILENCE:
            return
        if what == self._what and now - self._printed < SECONDS_BETWEEN_LINES:
            return
        self._what, self._printed = what, now
        print(f"{what}: {_amount(done, total)}", file=sys.stderr, flush=True)


def _amount(done: int, total: int) -> str:
    if max(done, total) >= 1_000_000:  # bytes
        return f"{done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB" if total else "")
    return f"{done} of {total}" if total else str(done)
