"""Finding stop strings in text that arrives piece by piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopScan(NamedTuple):
    """What may be shown after a push, and the stop string that ended the text (None while it goes on)."""

    text: str
    stop: str | None


class StopMatcher:
    """Looks for stop strings wherever the pieces happen to be cut.

    The text ends at the stop string that is *completed* first; of several completed by the same character the
    longest counts. Where pieces are cut changes nothing. Text that could be the beginning of a stop string is held
    back until it is known not to be one. Each character costs amortised constant time per stop string
    (Knuth, Morris and Pratt, 1977).

    Args:
        stops: strings, none empty.
        include: keep the stop string in the text (``include_stop_str_in_output``).
    """

    __slots__ = ("_borders", "_held", "_include", "_states", "_stops", "stopped")

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        if any(not stop for stop in stops):
            raise ValueError("a stop string must not be empty")
        self._stops = tuple(stops)
        self._borders = tuple(_borders(stop) for stop in self._stops)
        self._states = [0] * len(self._stops)
        self._include = include
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str, armed: bool = True) -> StopScan:
        """Take more text.

        Args:
            text: what follows the text pushed so far.
            armed: whether a stop string completed in this piece ends the text; not before ``min_tokens`` is reached.
        """
        if self.stopped is not None:
            return StopScan("", self.stopped)
        if not self._stops:
            return StopScan(text, None)
        best: tuple[int, int, str] | None = None  # (end, start), both counted from the beginning of `text`
        for which, stop in enumerate(self._stops):
            end = self._advance(which, text, armed)
            if end is not None:
                found = (end, end - len(stop), stop)
                best = found if best is None else min(best, found)
        joined, held = self._held + text, len(self._held)
        if best is not None:
            end, start, stop = best
            self.stopped, self._held = stop, ""
            return StopScan(joined[: held + (end if self._include else start)], stop)
        keep = max(self._states)
        cut = len(joined) - keep
        self._held = joined[cut:]
        return StopScan(joined[:cut], None)

    def finish(self) -> str:
        """The text still held back, once nothing more will come."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, which: int, text: str, armed: bool) -> int | None:
        """Run one automaton over ``text``; returns the end of the first match, if armed and there is one."""
        stop, borders, state = self._stops[which], self._borders[which], self._states[which]
        last, first, place = len(stop) - 1, stop[0], 0
        while place < len(text):
            if state == 0:
                place = text.find(first, place)  # the common case, at the speed of C
                if place < 0:
                    break
            letter = text[place]
            while state and stop[state] != letter:
                state = borders[state - 1]
            if stop[state] == letter:
                if state == last:
                    if armed:
                        return place + 1
                    state = borders[last]
                else:
                    state += 1
            place += 1
        self._states[which] = state
        return None


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper border (a prefix that is also a suffix)."""
    borders = [0] * len(stop)
    length = 0
    for place in range(1, len(stop)):
        while length and stop[length] != stop[place]:
            length = borders[length - 1]
        if stop[length] == stop[place]:
            length += 1
        borders[place] = length
    return borders
