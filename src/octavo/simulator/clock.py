"""Time as the simulator has it: it moves when a step ends or the next request comes, and never backwards."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the trace began, beside a machine that runs one plan after the other."""

    __slots__ = ("_busy_until", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._busy_until = 0.0

    def finish(self, submitted: float, seconds: float) -> float:
        """Wait for the oldest plan in flight, which was submitted at a moment and runs for so many seconds; it began
        when the machine was done with the plan before. Returns that beginning."""
        began = max(self._busy_until, submitted)
        self._busy_until = began + seconds
        self.wait_until(self._busy_until)
        return began

    def wait_until(self, moment: float) -> None:
        """Let time pass; nothing happens if the moment is over."""
        self.now = max(self.now, moment)
