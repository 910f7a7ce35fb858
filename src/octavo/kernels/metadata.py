"""What attention needs to know of a flat batch: an argument of every kernel that wants it, never a global."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """A flat batch of ``num_tokens`` query tokens from ``num_seqs`` sequences, prefill and decode mixed.

    Sequence ``s`` owns rows ``query_start[s] : query_start[s + 1]`` of the batch; they are its last
    ``query_start[s + 1] - query_start[s]`` tokens, so that row ``query_start[s] + i`` stands at position
    ``context_len[s] - num_queries(s) + i`` and sees keys at positions up to its own.

    All tensors are on the executor's device and contiguous.
    """

    query_start: torch.Tensor  #: int32 [num_seqs + 1], starts with 0, strictly increasing
    context_len: torch.Tensor  #: int32 [num_seqs], tokens in memory once this batch's K and V are written
    block_tables: torch.Tensor  #: int32 [num_seqs, >= ceil(context_len / block_size)]
    positions: torch.Tensor  #: int64 [num_tokens], position of each row
    slots: torch.Tensor  #: int64 [num_tokens], block id * block_size + offset: where the row's K and V go
    max_query: int  #: the most rows of one sequence (1: a pure decode batch)
    max_context: int  #: the largest ``context_len``
