"""A trie over full blocks: which prefixes are in memory, and in which blocks."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens

from octavo.plan import HOLE
from octavo.request import PrefixNode


class PrefixTree:
    """Nodes are full blocks of tokens; a node's key is (its parent, its block's token ids as bytes).

    Keys are compared whole, so the tree is exact: no hash collision can hand one user another's memory. The root is
    a namespace (the salt), so that prompts of different salts never meet. A node holds one block for each layer
    group, or a HOLE where a windowed group's block has been reused for something else. The tree holds no references:
    which blocks may be reused is the pool's to say.
    (The radix tree of SGLang and the hash chain of vLLM serve the same end.)
    """

    __slots__ = ("_children", "_free_nodes", "_index", "_keys", "blocks")

    def __init__(self) -> None:
        self._index: dict[tuple[PrefixNode, bytes], int] = {}
        # Parallel arrays by node number; number 0 is nobody, for BlockPool.node says "none" with it.
        self._keys: list[tuple[PrefixNode, bytes] | None] = [None]
        self._children = [0]
        self.blocks: list[tuple[int, ...]] = [()]
        self._free_nodes: list[int] = []

    def __len__(self) -> int:
        return len(self._index)

    def find(self, parent: PrefixNode, key: bytes) -> int:
        """The child of ``parent`` with this block of tokens, or 0."""
        return self._index.get((parent, key), 0)

    def insert(self, parent: PrefixNode, key: bytes, blocks: tuple[int, ...]) -> int:
        """Add a node, which must not exist, holding ``blocks`` (one for each layer group); returns its number."""
        full_key = (parent, key)
        if self._free_nodes:
            node = self._free_nodes.pop()
            self._keys[node] = full_key
            self._children[node] = 0
            self.blocks[node] = blocks
        else:
            node = len(self._keys)
            self._keys.append(full_key)
            self._children.append(0)
            self.blocks.append(blocks)
        self._index[full_key] = node
        if isinstance(parent, int):
            self._children[parent] += 1
        return node

    def remove(self, node: int) -> tuple[int, ...]:
        """Take a leaf out; returns the blocks it held.

        Raises:
            RuntimeError: the node has children (a bug: its number could be reused and they would hang wrongly).
        """
        full_key = self._keys[node]
        if full_key is None or self._children[node]:
            raise RuntimeError(f"prefix node {node} is not a leaf")
        del self._index[full_key]
        parent = full_key[0]
        if isinstance(parent, int):
            self._children[parent] -= 1
        self._keys[node] = None
        self._free_nodes.append(node)
        return self.blocks[node]

    def put(self, node: int, group: int, block: int) -> None:
        """Change the node's block of one layer group (to HOLE: it has none any more)."""
        held = self.blocks[node]
        self.blocks[node] = (*held[:group], block, *held[group + 1 :])

    def prune(self, node: int) -> None:
        """Take ``node`` out if nothing is left of it, neither blocks nor children, and then its parent likewise."""
        here: PrefixNode = node
        while isinstance(here, int) and not self._children[here] and all(block == HOLE for block in self.blocks[here]):
            parent = self.parent(here)
            self.remove(here)
            here = parent

    def parent(self, node: int) -> PrefixNode:
        """The node's parent, or its namespace."""
        full_key = self._keys[node]
        if full_key is None:
            raise RuntimeError(f"prefix node {node} does not exist")
        return full_key[0]

    def num_children(self, node: int) -> int:
        """How many longer prefixes hang on the node."""
        return self._children[node]

    def nodes(self) -> list[int]:
        """Every node's number. O(nodes): for audits and pictures."""
        return list(self._index.values())


def block_key(tokens: Tokens[int], start: int, end: int) -> bytes:
    """The bytes under which ``tokens[start:end]`` is filed."""
    return array("i", tokens[start:end]).tobytes()


def block_keys(tokens: Tokens[int], start: int, end: int, size: int) -> list[bytes]:
    """The keys of the blocks of ``size`` tokens between ``start`` and ``end``, which are block borders."""
    content = array("i", tokens[start:end])
    width = content.itemsize * size
    whole = content.tobytes()
    return [whole[at : at + width] for at in range(0, len(whole), width)]
