"""Decode steps as CUDA graphs: one for each of a ladder of batch sizes, captured when it is first needed.

A step of some hundred kernels costs the host milliseconds to launch one by one, and microseconds as a graph. (Ladders
of captured batch sizes are vLLM's and nano-vllm's way, too; there they are captured before the first request.)
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from collections.abc import Callable

from octavo.executor.gpu.accelerator import Accelerator, Graph
from octavo.hub import Progress

logger = logging.getLogger(__name__)


def ladder_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes 1, 2, 4, 8, 16, 24, ... up to ``most``, which is the last. Beyond 128 the rungs are a sixteenth apart
    or less, so that no more than so much of a batch is padding."""
    sizes = [size for size in (1, 2, 4) if size < most]
    size = 8
    while size < most:
        sizes.append(size)
        size += max(8, 1 << max(0, size.bit_length() - 5))
    return (*sizes, most)


class GraphLadder:
    """The graphs of a step that is defined for each batch size.

    A size's first step runs as it is, and is captured afterwards: by then its kernels are compiled, the step is done
    whatever becomes of the capture, and its effects are had once. From then on the size is replayed. Graphs share one
    pool of memory, which is sound for steps that leave their results in memory of their own.

    Captures stop where one more, as large as the largest so far, would go beyond the budget. Where memory runs out in
    one, every graph is freed and the ladder loses every other rung, until it has none.

    Args:
        accelerator: the device.
        sizes: of the batches, ascending. () for a ladder on which nothing is captured.
        budget_bytes: of memory that graphs may take.
        progress: called after each capture.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        sizes: tuple[int, ...],
        budget_bytes: int,
        progress: Progress | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._sizes = sizes
        self._budget = budget_bytes
        self._progress = progress
        self._graphs: dict[int, Graph] = {}
        self._pool: object = None
        self._is_full = False
        self.bytes_of: dict[int, int] = {}  #: what capturing each size took, as measured
        self.notes: list[str] = []  #: what did not go as it should, a line each, for a person

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the batches that are captured, or will be."""
        return tuple(sorted(self._graphs)) if self._is_full else self._sizes

    @property
    def taken_bytes(self) -> int:
        """What the graphs there are took."""
        return sum(self.bytes_of[size] for size in self._graphs)

    @property
    def captured(self) -> tuple[int, ...]:
        """Sizes that are replayed."""
        return tuple(sorted(self._graphs))

    def size_for(self, rows: int) -> int:
        """The batch size that a step of ``rows`` rows is to be filled up to: the smallest that is or will be captured;
        ``rows`` itself where none holds them."""
        sizes = self.sizes
        place = bisect_left(sizes, rows)
        return sizes[place] if place < len(sizes) else rows

    def run(self, size: int, work: Callable[[], object]) -> None:
        """Run a step of ``size`` rows, a size from :meth:`size_for`; ``work`` is what it is made of, the same for
        every step of that size."""
        graph = self._graphs.get(size)
        if graph is not None:
            graph.replay()
            return
        work()
        if size in self._sizes and not self._is_full:
            self._capture(size, work)

    def free(self) -> int:
        """Give the graphs' memory back; they are captured anew when they are needed again. Returns how many."""
        number = len(self._graphs)
        if number:
            self._accelerator.synchronize()  # one may be under way
        self._graphs.clear()
        self._pool = None  # PyTorch takes no pool again whose graphs are gone
        self._is_full = False
        return number

    def shorten(self, why: str) -> None:
        """Free the graphs, and go on with every other rung of the ladder, the largest among them; none after the
        last."""
        self.free()
        kept = self._sizes[::-1][::2][::-1] if len(self._sizes) > 1 else ()
        left = f"graphs for {len(kept)} batch sizes in place of {len(self._sizes)}" if kept else "no more graphs"
        self._note(f"{why}: {left}")
        self._sizes = kept

    def _capture(self, size: int, work: Callable[[], object]) -> None:
        if self.taken_bytes + max(self.bytes_of.values(), default=0) > self._budget:
            self._fill(f"graph memory is used up ({self.taken_bytes >> 20} of {self._budget >> 20} MiB)")
            return
        if self._pool is None:
            self._pool = self._accelerator.new_pool()
        began, free = time.perf_counter(), self._accelerator.memory().free
        failure = None
        try:
            self._graphs[size] = self._accelerator.capture(work, self._pool)
        except Exception as error:
            if not self._accelerator.is_out_of_memory(error):
                self._give_up(f"a decode step of {size} rows could not be captured: {error}")
                return
            failure = str(error)
        if failure is not None:  # out here nothing holds on to what was half captured
            self.shorten(f"out of memory capturing a decode step of {size} rows ({failure})")
            return
        taken = self.bytes_of[size] = max(0, free - self._accelerator.memory().free)
        logger.info(
            "captured a decode step of %d rows in %.2f s: %.1f MiB (%d of %d sizes)",
            size,
            time.perf_counter() - began,
            taken / 2**20,
            len(self._graphs),
            len(self._sizes),
        )
        if self._progress is not None:
            self._progress("capturing decode steps", len(self._graphs), len(self._sizes))

    def _fill(self, why: str) -> None:
        self._is_full = True
        self._note(f"{why}: decode steps run in batches of {', '.join(map(str, self.captured)) or 'no captured size'}")

    def _give_up(self, why: str) -> None:
        self.free()
        self._sizes = ()
        self._note(f"{why}; decode steps run without graphs, and slower")

    def _note(self, line: str) -> None:
        self.notes.append(line)
        logger.warning(line)
