"""The second tier of the prefix cache: cached blocks that were evicted from the device, in host memory."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from octavo.memory.prefix_tree import PrefixTree
from octavo.memory.swap_table import SwapTable


class Demoted(NamedTuple):
    """Where a node's content is, and since which step."""

    pages: tuple[int, ...]  #: one for each layer group
    step: int


class HostCache:
    """Demoted nodes: they stay in the prefix tree, with host pages instead of blocks.

    Leaves leave the device before their parents, so below a demoted node all are demoted, and the order of demotion,
    in which pages are given up, has children before parents, too. Host memory is there for swapped sequences first:
    nodes take pages that nobody else wants, and give them up when somebody does. Pages written by the step that is
    being planned (*fresh* ones) are neither given up nor read before it is.
    (Tiers of one radix tree: HiCache in SGLang.)
    """

    __slots__ = (
        "_below",
        "_num_fresh",
        "_num_pages",
        "_step",
        "_swaps",
        "_tree",
        "nodes",
        "num_demoted",
        "num_promoted",
    )

    def __init__(self, tree: PrefixTree, swaps: SwapTable) -> None:
        self.nodes: OrderedDict[int, Demoted] = OrderedDict()  # the longest demoted first
        self.num_demoted = 0  # blocks, ever
        self.num_promoted = 0
        self._tree = tree
        self._swaps = swaps
        self._below: dict[int, set[int]] = {}  # node -> its demoted children
        self._num_pages = 0
        self._num_fresh = 0  # of them, written by step number ``_step``
        self._step = -1

    @property
    def num_reclaimable(self) -> int:
        """Pages that :meth:`make_room` could give up."""
        return self._num_pages - (self._num_fresh if self._step == self._swaps.num_steps else 0)

    def num_below(self, node: int) -> int:
        """How many of the node's children are demoted."""
        return len(self._below.get(node, ()))

    def is_fresh(self, node: int) -> bool:
        """Whether its pages are written by the step being planned."""
        return self.nodes[node].step == self._swaps.num_steps

    def make_room(self, count: int) -> bool:
        """Have ``count`` host pages free, giving up the nodes demoted longest ago; False if there are not so many."""
        host = self._swaps.host
        if count > host.num_free + self.num_reclaimable:
            return False
        while host.num_free < count:
            node = next(iter(self.nodes))
            host.release(self._take(node).pages)
            self._tree.remove(node)
        return True

    def demote(self, node: int, blocks: tuple[int, ...]) -> bool:
        """Move the content of ``blocks`` to host pages; False if there are none to be had."""
        if not self.make_room(len(blocks)):
            return False
        swaps, step = self._swaps, self._swaps.num_steps
        pages = tuple(swaps.host.allocate(len(blocks)))
        swaps.moves_out.extend(zip(blocks, pages, strict=True))
        self.nodes[node] = Demoted(pages, step)
        parent = self._tree.parent(node)
        if isinstance(parent, int):
            self._below.setdefault(parent, set()).add(node)
        if self._step != step:
            self._step, self._num_fresh = step, 0
        self._num_fresh += len(pages)
        self._num_pages += len(pages)
        self.num_demoted += len(pages)
        return True

    def take(self, node: int) -> tuple[int, ...]:
        """The node is on the device again (or about to be): its pages, which can be had again after this step."""
        pages = self._take(node).pages
        self._swaps.give_back(pages)
        return pages

    def drop_below(self, node: int) -> None:
        """Forget everything that hangs on a node."""
        for child in sorted(self._below.get(node, ())):
            self.drop_below(child)
            self.take(child)
            self._tree.remove(child)

    def clear(self) -> int:
        """Forget all demoted nodes; returns how many pages they had."""
        count = self._num_pages
        for node in list(self.nodes):
            self.take(node)
            self._tree.remove(node)
        return count

    def audit(self) -> list[int]:
        """Check that below demoted nodes there are only demoted ones; returns all pages.

        Raises:
            RuntimeError: it is not so.
        """
        below: dict[int, set[int]] = {}
        for node in self.nodes:
            if self._tree.num_children(node) != self.num_below(node):
                raise RuntimeError(f"prefix node {node} is demoted, one of its children is not")
            parent = self._tree.parent(node)
            if isinstance(parent, int):
                below.setdefault(parent, set()).add(node)
        if below != self._below:
            raise RuntimeError("the demoted children of prefix nodes are not what is noted")
        pages = [page for demoted in self.nodes.values() for page in demoted.pages]
        if len(pages) != self._num_pages:
            raise RuntimeError(f"{self._num_pages} pages of demoted nodes are counted, there are {len(pages)}")
        return pages

    def _take(self, node: int) -> Demoted:
        demoted = self.nodes.pop(node)
        self._num_pages -= len(demoted.pages)
        if demoted.step == self._step:
            self._num_fresh -= len(demoted.pages)
        parent = self._tree.parent(node)
        if isinstance(parent, int):
            siblings = self._below[parent]
            siblings.discard(node)
            if not siblings:
                del self._below[parent]
        return demoted
