"""The block pool as a picture: one cell a block, coloured and lettered by the request that holds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.memory import MemorySnapshot

if TYPE_CHECKING:
    from rich.text import Text

PALETTE = ("#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d19a66", "#8fa3f5")
"""A colour a request, in the order of arrival, then from the beginning again."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FREE, CACHED, SHARED = "·", "o", "#"


def letter(place: int) -> str:
    """The name of the request that came as number ``place``."""
    return LETTERS[place % len(LETTERS)]


def colour(place: int) -> str:
    """The colour of the request that came as number ``place``."""
    return PALETTE[place % len(PALETTE)]


@dataclass(frozen=True, slots=True)
class BlockMap:
    """One moment of the pool.

    A held block shows the letter of its request; ``#`` several requests (or sequences of one) share it; ``o`` it is
    free, but what it holds can still serve a prompt that begins alike; ``·`` it is free.

    Args:
        snapshot: every block and the sequences that hold it.
        places: sequence id -> the number of the request it belongs to.
        columns: characters to a line (two a cell).
        rows: lines at the most; what does not fit is counted in a last line.
    """

    snapshot: MemorySnapshot
    places: Mapping[int, int]
    columns: int = 76
    rows: int = 12

    @property
    def cells_per_row(self) -> int:
        """Blocks to a line."""
        return max(1, self.columns // 2)

    def _cells(self) -> Iterator[tuple[str, str]]:
        """(character, style) of each block that is shown."""
        snapshot = self.snapshot
        for block, owners in enumerate(snapshot.owner[: self.cells_per_row * self.rows]):
            if owners:
                place = self.places.get(owners[0], 0)
                style = f"#101010 on {colour(place)}"
                yield (SHARED, f"bold {style}") if len(owners) > 1 else (letter(place), style)
            elif block in snapshot.cached:
                yield CACHED, "grey58 on grey23"
            else:
                yield FREE, "grey42"

    def _left_out(self) -> int:
        return max(0, len(self.snapshot.owner) - self.cells_per_row * self.rows)

    def lines(self) -> list[str]:
        """The picture in plain characters."""
        cells = [f"{character} " for character, _ in self._cells()]
        width = self.cells_per_row
        lines = ["".join(cells[start : start + width]).rstrip() for start in range(0, len(cells), width)]
        return [*lines, f"... and {self._left_out():,} more"] if self._left_out() else lines

    def text(self) -> Text:
        """The picture in colour."""
        from rich.text import Text

        text = Text(no_wrap=True)
        for number, (character, style) in enumerate(self._cells()):
            if number and number % self.cells_per_row == 0:
                text.append("\n")
            text.append(f"{character} ", style)
        if self._left_out():
            text.append(f"\n... and {self._left_out():,} more", "grey58")
        return text

    def legend(self) -> Text:
        """What the cells mean, with how many there are of each."""
        from rich.text import Text

        snapshot = self.snapshot
        text = Text(no_wrap=True)
        for character, style, meaning in (
            ("A", f"#101010 on {PALETTE[0]}", f"held {snapshot.num_used}"),
            (SHARED, f"bold #101010 on {PALETTE[0]}", f"shared {snapshot.num_shared}"),
            (CACHED, "grey58 on grey23", f"cached {snapshot.num_cached}"),
            (FREE, "grey42", f"free {snapshot.num_free}"),
        ):
            text.append(f"{character} ", style)
            text.append(f" {meaning:<11} ", "grey70")
        return text


def summary(snapshot: MemorySnapshot) -> str:
    """The picture in one line of words."""
    total = len(snapshot.owner)
    return (
        f"{snapshot.num_used} of {total} blocks held ({snapshot.num_shared} shared), {snapshot.num_cached} cached, "
        f"{snapshot.num_free} free, utilisation {snapshot.utilisation:.1%}"
    )
