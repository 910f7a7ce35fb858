"""How tokens lie in blocks: what a sequence of so many takes, in every layer group."""

from __future__ import annotations

from octavo.config import SchedulerConfig
from octavo.request import Request


class BlockLayout:
    """The arithmetic of blocks, over all layer groups: no state but the configuration.

    ``windowed`` are the numbers of the groups that see only a window of the past, ``full`` those of the others.
    """

    __slots__ = ("_stride", "block_size", "full", "groups", "num_groups", "windowed")

    def __init__(self, config: SchedulerConfig) -> None:
        self.block_size = config.block_size
        self.groups = config.groups
        self.num_groups = len(config.groups)
        self.windowed = [g for g, group in enumerate(config.groups) if group.window is not None]
        self.full = [g for g, group in enumerate(config.groups) if group.window is None]
        self._stride = config.max_num_batched_tokens * (config.depth + 1)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks of one layer group that so many tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def most_held(self, group: int, num_tokens: int) -> int:
        """The most blocks of one layer group that a sequence of so many tokens holds at once."""
        return self.groups[group].blocks_for(num_tokens, self.block_size, self._stride)

    def first_needed(self, group: int, num_published: int) -> int:
        """How many leading blocks a sequence does not need that begins after so many cached ones. The last of these
        it needs in any case: the place of a sequence in the prefix tree must not be pruned under it."""
        position = self.groups[group].first_visible(num_published * self.block_size)
        return max(0, min(position // self.block_size, num_published - 1))

    def blocks_for(self, num_tokens: int) -> int:
        """The most blocks that a sequence of so many tokens holds at once, over all layer groups."""
        if not self.windowed:
            return self.num_blocks(num_tokens) * self.num_groups
        return sum(self.most_held(g, num_tokens) for g in range(self.num_groups))

    def blocks_beside(self, num_tokens: int, num_prompt: int) -> int:
        """The most blocks that a sequence of so many tokens holds beside those it shares with its siblings: the full
        ones of their prompt. What leaves a window is shared only while it lasts, so there nothing is counted on."""
        whole, shared = self.num_blocks(num_tokens), num_prompt // self.block_size
        return sum(
            self.most_held(g, num_tokens) if group.window is not None and num_tokens > group.window else whole - shared
            for g, group in enumerate(self.groups)
        )

    def most_blocks(self, request: Request) -> int:
        """The most blocks the request can ever hold at once: its sequences share the prompt's full blocks only."""
        prompt, count = len(request.prompt_token_ids), request.params.num_sequences
        total = prompt + request.max_new_tokens
        most = self.blocks_for(total) + (count - 1) * self.blocks_beside(total, prompt)
        if count > 1 and any(total > (group.window or total) for group in self.groups):
            # A sibling that cannot begin where the others are, for want of a windowed block, computes blocks of the
            # full groups anew, until it is seen that they are filed already.
            step = min(prompt, self._stride) // self.block_size + 1
            most += step * len(self.full)
        return most
