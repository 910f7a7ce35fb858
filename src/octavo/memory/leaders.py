"""Who is computing which block just now."""

from __future__ import annotations

from octavo.memory.prefix_tree import block_key
from octavo.request import PrefixNode, Sequence


class Leaders:
    """The sequences that compute a block first, by what will be in it: others that begin alike can wait for it.

    Args:
        block_size: tokens in a block.
        caching: whether requests share with one another; if not, only the sequences of one do.
    """

    __slots__ = ("_block_size", "_caching", "_keys", "_sequences")

    def __init__(self, block_size: int, caching: bool) -> None:
        self._block_size = block_size
        self._caching = caching
        # (node, next block's tokens) -> the sequence that is computing that block just now
        self._sequences: dict[tuple[PrefixNode, bytes], Sequence] = {}
        self._keys: dict[int, tuple[PrefixNode, bytes]] = {}  # by the sequence's id

    def find(self, seq: Sequence, nodes: list[int]) -> Sequence | None:
        """The sequence, if any, that is just now computing the block which follows the match ``nodes``, and for which
        ``seq`` could wait instead of computing it too."""
        start = len(nodes) * self._block_size
        if not self._sequences or start + self._block_size > len(seq.tokens) - 1:
            return None
        parent = nodes[-1] if nodes else seq.request.namespace
        return self._sequences.get((parent, block_key(seq.tokens, start, start + self._block_size)))

    def lead(self, seq: Sequence) -> None:
        """Announce that ``seq`` computes the block after its last published one, for :meth:`find`."""
        start = seq.num_published * self._block_size
        if start + self._block_size > len(seq.tokens) or seq.id in self._keys:
            return
        if not self._caching and seq.request.params.num_sequences == 1 and not seq.num_published:
            return
        key = (seq.node, block_key(seq.tokens, start, start + self._block_size))
        if key not in self._sequences:
            self._sequences[key] = seq
            self._keys[seq.id] = key

    def stop(self, seq: Sequence) -> None:
        """``seq`` has computed that block, or will not any more."""
        key = self._keys.pop(seq.id, None)
        if key is not None:
            del self._sequences[key]
