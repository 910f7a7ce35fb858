"""Which cached prefix a sequence can go on from."""

from __future__ import annotations

from octavo.memory.layout import BlockLayout
from octavo.memory.prefix_cache import PrefixCache
from octavo.memory.prefix_tree import block_keys
from octavo.plan import HOLE
from octavo.request import PrefixNode, Sequence

_STRIDE = 32  # blocks that are converted at a time


class PrefixMatcher:
    """Looks prompts up in the prefix tree.

    A prefix can be shared if every full group has all its blocks, and every windowed group those that the next token
    looks back on, the last one in any case.
    """

    __slots__ = ("_cache", "_layout")

    def __init__(self, layout: BlockLayout, cache: PrefixCache) -> None:
        self._layout = layout
        self._cache = cache

    def match(self, seq: Sequence) -> list[int]:
        """The nodes of the longest cached prefix that ``seq`` can go on from, leaving at least its last token to
        compute."""
        nodes = self.filed(seq)
        host_cache = self._cache.host_cache
        if host_cache is not None:
            while nodes and nodes[-1] in host_cache.nodes:
                nodes.pop()
        if self._layout.windowed:
            del nodes[self._covered(nodes) :]
        return nodes

    def filed(self, seq: Sequence) -> list[int]:
        """The nodes of the longest prefix of ``seq`` that is in the tree, wherever its blocks are, but for the one that
        would hold its last token."""
        size, find = self._layout.block_size, self._cache.tree.find
        nodes: list[int] = []
        last = (len(seq.tokens) - 1) // size
        parent: PrefixNode = seq.request.namespace
        for first in range(0, last, _STRIDE):  # a long prompt is not converted beyond where it is unknown
            for key in block_keys(seq.tokens, first * size, min(first + _STRIDE, last) * size, size):
                child = find(parent, key)
                if not child:
                    return nodes
                nodes.append(child)
                parent = child
        return nodes

    def _covered(self, nodes: list[int]) -> int:
        """How many of ``nodes`` a sequence can begin with: the most such that no windowed group has a hole in what is
        seen from there."""
        blocks, windowed = self._cache.tree.blocks, self._layout.windowed
        length, tried = len(nodes), 0
        while tried < len(windowed):
            group = windowed[tried]
            first = self._layout.first_needed(group, length)
            hole = next((i for i in range(length - 1, first - 1, -1) if blocks[nodes[i]][group] == HOLE), None)
            if hole is None:
                tried += 1
            else:  # whoever begins between the hole and here sees it, too
                length, tried = hole, 0
        return length
