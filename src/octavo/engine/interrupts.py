"""Ctrl-C between steps, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class InterruptsHeld:
    """While it is entered, SIGINT is noted; it is delivered on leaving, to whoever handled it before.

    A step that is cut in half leaves scheduler and executor with different ideas of who holds which block, so the
    signal waits for the step's end. A second one does not wait: whoever presses Ctrl-C twice wants out. Off the main
    thread, where Python delivers no signals, and where SIGINT is ignored (a shell's background job), nothing is done.
    """

    __slots__ = ("_before", "pending")

    def __init__(self) -> None:
        self.pending = False
        self._before: Any = None

    def __enter__(self) -> InterruptsHeld:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before not in (None, signal.SIG_IGN):  # None: a handler that Python does not know
                self._before = before
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            if self.pending and error is None:
                signal.raise_signal(signal.SIGINT)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True
