"""Requests that can still be forked: live ones as they stand, and the last ones that ended."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from octavo.errors import RequestError, UnsupportedError
from octavo.request import NoiseIndexes, Request, SamplingParams, Sequence


@dataclass(frozen=True, slots=True)
class Origin:
    """What a fork takes over from a request."""

    request_id: str
    sequences: tuple[Sequence, ...]  #: while it is live; else ()
    lines: tuple[list[int], ...]  #: all tokens of each of its outputs, the prompt included
    num_prompt: int
    params: SamplingParams
    priority: int
    user: str | None
    salt: str | None
    seed: int
    noise: NoiseIndexes

    @classmethod
    def of(cls, request: Request, live: bool) -> Origin:
        """The request as it stands."""
        return cls(
            request_id=request.id,
            sequences=tuple(request.sequences) if live else (),
            lines=tuple(seq.tokens for seq in request.sequences),
            num_prompt=len(request.prompt_token_ids),
            params=request.params,
            priority=request.priority,
            user=request.user,
            salt=request.salt,
            seed=request.seed,
            noise=request.noise,
        )

    def choose(self, index: int | None, at: int | None) -> tuple[int, int]:
        """Which output is meant, and how many of its tokens.

        Raises:
            RequestError: ``index`` or ``at`` is out of range, or several outputs are meant.
            UnsupportedError: a beam search is still running: its lines change with every step.
        """
        if self.sequences and self.params.beam_width > 1:
            raise UnsupportedError(
                f"request {self.request_id!r} is a beam search that still runs, and its beams change with every step: "
                "fork it when it has ended"
            )
        for name, value in (("index", index), ("at", at)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise RequestError(f"{name} must be an integer, not {value!r}")
        count = len(self.lines)
        if index is None:
            if count != 1 and (at is None or at > self.num_prompt):
                raise RequestError(f"request {self.request_id!r} has {count} outputs: say index=0 to {count - 1}")
            index = 0
        if not 0 <= index < count:
            raise RequestError(f"index={index} is out of range: request {self.request_id!r} has {count} output(s)")
        length = len(self.lines[index])
        if at is None:
            at = length
        if not 1 <= at <= length:
            raise RequestError(
                f"at={at} is out of range: request {self.request_id!r} has {length} tokens so far, "
                f"{self.num_prompt} of them its prompt; use 1 to {length}"
            )
        return index, at


class RetainedRequests:
    """The requests that ended last, or were forked last: beyond ``limit`` the least recently used is forgotten."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._origins: OrderedDict[str, Origin] = OrderedDict()

    def __len__(self) -> int:
        return len(self._origins)

    def keep(self, request: Request) -> None:
        """A request has ended."""
        self._origins.pop(request.id, None)
        self._origins[request.id] = Origin.of(request, live=False)
        while len(self._origins) > self.limit:
            self._origins.popitem(last=False)

    def find(self, request_id: str) -> Origin | None:
        """The request of this id, if it is still known."""
        if request_id in self._origins:
            self._origins.move_to_end(request_id)
        return self._origins.get(request_id)
