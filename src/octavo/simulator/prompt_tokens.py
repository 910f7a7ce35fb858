"""Token ids for prompts of which a trace tells only the lengths and what they have in common."""

from __future__ import annotations

from octavo.simulator.trace import Trace


class PromptTokens:
    """Makes up prompts and outputs: prompts that begin with the same contents begin with the same tokens, and nothing
    else is equal to anything.

    A piece of content is spelled with one token id, its number, as often as it has tokens. In a trie over whole
    prefixes that tells positions and contents apart as well as words would, and costs no time. What a request
    generates has an id of its own, for traces do not say what was generated.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._first_prompt = trace.num_contents
        self._first_output = trace.num_contents + len(trace.requests)
        self.vocab_size = self._first_output + len(trace.requests)

    def prompt(self, place: int) -> list[int]:
        """The token ids of the prompt of the trace's request number ``place``."""
        request = self._trace.requests[place]
        if not request.contents:
            return [self._first_prompt + place] * request.num_prompt
        piece, left = self._trace.piece, request.num_prompt
        tokens: list[int] = []
        for content in request.contents:
            tokens += [content] * min(piece, left)
            left -= piece
        return tokens

    def output(self, place: int) -> int:
        """The token that this request generates, over and over."""
        return self._first_output + place
