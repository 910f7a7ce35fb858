"""A line of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.request.block_table import BlockTable
from octavo.request.state import FinishReason, SequenceState
from octavo.request.swapped import Swapped

if TYPE_CHECKING:
    from octavo.request.request import Request

PrefixNode = int | tuple[str, str | None]
"""A node of the prefix tree, or the namespace at whose root a sequence's first block hangs."""


class Sequence:
    """One line of tokens being grown for a request.

    There is no prefill or decode phase: ``num_computed`` (tokens whose KV is in memory) chases ``len(tokens)``.
    ``num_scheduled`` is the same cursor as the plans in flight will leave it, and ``num_total`` is ``len(tokens)``
    plus the samples that they will bring.
    """

    __slots__ = (
        "capacity",
        "cumulative_logprob",
        "draws",
        "epoch",
        "finish_reason",
        "id",
        "in_flight",
        "index",
        "limit",
        "logprobs",
        "node",
        "num_computed",
        "num_prompt",
        "num_published",
        "num_scheduled",
        "num_total",
        "request",
        "slot",
        "state",
        "stop_reason",
        "swapped",
        "tables",
        "tokens",
    )

    def __init__(self, id: int, request: Request, index: int, tokens: list[int], num_groups: int = 1) -> None:
        self.id = id
        self.request = request
        self.index = index  # the noise index among the request's sequences
        self.draws: tuple[int, ...] = (index,)  # noise indexes to draw with; several while a prompt feeds n sequences
        self.tokens = tokens
        self.num_prompt = len(request.prompt_token_ids)
        self.limit = self.num_prompt + request.max_new_tokens
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_total = len(tokens)
        self.in_flight = 0  # plans not yet collected that hold a chunk of this sequence
        self.epoch = 0  # counts preemptions: a chunk of an earlier epoch moves no cursor
        self.capacity = 0  # positions below it can be written without asking the memory manager
        self.tables: tuple[BlockTable, ...] = tuple(BlockTable() for _ in range(num_groups))
        self.node: PrefixNode = request.namespace  # where the next full block hangs in the prefix tree
        self.num_published = 0  # full blocks in the prefix tree
        self.swapped: Swapped | None = None  # its place in host memory, while it has one
        self.slot = -1
        self.state = SequenceState.WAITING
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None
        self.cumulative_logprob = 0.0
        self.logprobs: list[dict[int, float]] | None = None

    @property
    def num_resumable(self) -> int:
        """Tokens whose KV it can go on with after it was swapped out. It is computed up to ``num_scheduled`` by then;
        but the last token's outcome may still be in flight, and lost to it, so that one is computed again."""
        return min(self.num_scheduled, self.num_total - 1)

    @property
    def output_token_ids(self) -> list[int]:
        """The new tokens."""
        return self.tokens[self.num_prompt :]

    def __repr__(self) -> str:
        return (
            f"Sequence(id={self.id}, request={self.request.id!r}, tokens={len(self.tokens)}, "
            f"computed={self.num_computed}, {self.state.value})"
        )
