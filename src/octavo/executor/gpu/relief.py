"""When memory runs out in the midst of a step: what is given up for it, and how much is tried at once from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from octavo.executor.gpu.accelerator import Accelerator
from octavo.executor.gpu.graphs import GraphLadder

logger = logging.getLogger(__name__)

_PATIENCE = 256
"""Steps in parts, all of them well, before parts twice as large are tried."""

T = TypeVar("T")


class MemoryRelief:
    """Finds memory for a step that had too little.

    That should not happen, for the largest step was measured; but memory gets fragmented, and other processes take
    some.

    Args:
        accelerator: the device.
        ladder: graphs, to be given up.
    """

    def __init__(self, accelerator: Accelerator, ladder: GraphLadder) -> None:
        self._accelerator = accelerator
        self._ladder = ladder
        self._most: int | None = None
        self._well = 0
        self.reason: str | None = None  #: what the device said when a step was too large even so

    def attempt(self, work: Callable[[], T]) -> T:
        """Do ``work``. Where memory runs out it is done again: after what PyTorch keeps for later has been given back,
        and once more without graphs.

        Args:
            work: may fail halfway, if what it has changed by then does not matter to its next try.

        Raises:
            Exception: what ``work`` raised; out of memory, after all that.
        """
        reliefs = [self._give_back, self._free_graphs]
        while True:
            try:
                return work()
            except Exception as error:
                if not self.is_due(error) or not reliefs:
                    raise
            reliefs.pop(0)()  # out here nothing holds on to what was half done

    def is_due(self, error: BaseException) -> bool:
        """Whether an error says that memory ran out."""
        return self._accelerator.is_out_of_memory(error)

    def allows(self, num_tokens: int) -> bool:
        """Whether a step of so many tokens is to be tried as a whole."""
        if self._most is None or num_tokens <= self._most:
            return True
        self._well += 1
        if self._well > _PATIENCE:
            self._well, self._most = 0, 2 * self._most
        return False

    def limit(self, num_tokens: int, reason: str) -> None:
        """A step, or part of one, of so many tokens was too large even so."""
        self.reason = reason
        most = max(1, num_tokens // 2)
        self._well = 0
        if self._most is None or most < self._most:
            logger.warning("out of memory in a step of %d tokens: now at most %d at once", num_tokens, most)
            self._most = most

    def _give_back(self) -> None:
        self._accelerator.memory()

    def _free_graphs(self) -> None:
        if self._ladder.captured:
            self._ladder.shorten("out of memory in a step")
            self._accelerator.memory()
