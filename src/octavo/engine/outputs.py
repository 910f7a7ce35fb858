"""From tokens to what the caller sees: text as it grows, and a request's output as it stands."""

from __future__ import annotations

from octavo.engine.detokenizer import IncrementalDetokenizer
from octavo.engine.stop_strings import StopMatcher
from octavo.engine.tokenizer import Tokenizer
from octavo.request import CompletionOutput, FinishReason, Request, RequestMetrics, RequestOutput, Sequence


class SequenceText:
    """One sequence's text: its tokens decoded as they come, cut at a stop string."""

    __slots__ = ("_detokenizer", "_matcher", "_parts", "_taken", "_text")

    def __init__(self, tokenizer: Tokenizer, seq: Sequence) -> None:
        params = seq.request.params
        prompt = seq.request.prompt_token_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt, params.skip_special_tokens)
        self._matcher = StopMatcher(params.stop_strings, params.include_stop_str_in_output)
        self._taken = seq.num_prompt  # tokens decoded so far
        self._parts: list[str] = []
        self._text = ""

    def update(self, seq: Sequence) -> str | None:
        """Decode what is new; returns the stop string that ended the text, if one did. Tokens that came after it are
        cut off the sequence."""
        params, tokens = seq.request.params, seq.tokens
        while self._taken < len(tokens):
            token = tokens[self._taken]
            self._taken += 1
            armed = self._taken - seq.num_prompt >= params.min_tokens
            scan = self._matcher.push(self._detokenizer.push((token,)), armed)
            self._parts.append(scan.text)
            if scan.stop is not None:
                if len(tokens) > self._taken:
                    _cut(seq, self._taken)
                return scan.stop
        return None

    def finish(self, seq: Sequence) -> str | None:
        """Nothing more will come: let out what was held back, unless a stop string has ended the text."""
        if self._matcher.stopped is None:
            armed = self._taken - seq.num_prompt >= seq.request.params.min_tokens
            scan = self._matcher.push(self._detokenizer.finish(), armed)
            self._parts.append(scan.text)
            if scan.stop is not None:
                return scan.stop
            self._parts.append(self._matcher.finish())
        return None

    @property
    def text(self) -> str:
        """All text so far."""
        if self._parts:
            self._text += "".join(self._parts)
            self._parts.clear()
        return self._text


def _cut(seq: Sequence, length: int) -> None:
    """Leave the first ``length`` tokens of a sequence, with what is known of them."""
    del seq.tokens[length:]
    if seq.logprobs is not None:
        new = seq.tokens[seq.num_prompt :]
        del seq.logprobs[len(new) :]
        seq.cumulative_logprob = sum((known[token] for known, token in zip(seq.logprobs, new, strict=True)), 0.0)


class OutputBuilder:
    """Builds :class:`~octavo.request.RequestOutput` objects, keeping each live sequence's text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[str, dict[int, SequenceText]] = {}  # request id -> sequence id -> text

    def text_of(self, seq: Sequence) -> SequenceText:
        """The text of a sequence, begun when it is first asked for."""
        texts = self._texts.setdefault(seq.request.id, {})
        text = texts.get(seq.id)
        if text is None:
            text = texts[seq.id] = SequenceText(self._tokenizer, seq)
        return text

    def build(self, request: Request, finished: bool) -> RequestOutput:
        """The request as it stands."""
        outputs = [self._completion(request, place, seq) for place, seq in enumerate(request.sequences)]
        if finished:
            self.forget(request)
        return RequestOutput(
            request_id=request.id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            outputs=outputs,
            finished=finished,
            metrics=RequestMetrics(
                arrival=request.arrival,
                first_scheduled=request.first_scheduled,
                first_token=request.first_token,
                finished=request.finished_at,
                num_cached_tokens=request.num_cached,
                num_shared_blocks=request.num_shared,
                num_copies=request.num_copies,
                num_preemptions=request.num_preemptions,
                num_swapped_out=request.num_swapped_out,
                num_swapped_in=request.num_swapped_in,
                num_drafted_tokens=request.num_drafted,
                num_accepted_tokens=request.num_accepted,
            ),
            prompt_logprobs=request.prompt_logprobs,
            error=request.failure,
        )

    def forget(self, request: Request) -> None:
        """Drop the texts of a request that is over, those of sequences that ``best_of`` did not choose included."""
        self._texts.pop(request.id, None)

    def _completion(self, request: Request, place: int, seq: Sequence) -> CompletionOutput:
        text = self.text_of(seq)
        if request.params.beam_width > 1:  # beams are decoded once, at the end
            text.update(seq)
            text.finish(seq)
        scored = request.params.logprobs is not None
        ranked = request.params.best_of is not None or request.params.beam_width > 1
        return CompletionOutput(
            index=place,
            text=text.text,
            token_ids=seq.output_token_ids,
            finish_reason=None if seq.finish_reason is None else seq.finish_reason.value,
            stop_reason=seq.stop_reason,
            cumulative_logprob=seq.cumulative_logprob if scored or ranked else None,
            logprobs=list(seq.logprobs or ()) if scored else None,
        )


def take_in(builder: OutputBuilder, seq: Sequence) -> str | None:
    """Decode a sequence's new tokens, and its tail if it has ended; returns the stop string that ended its text."""
    text = builder.text_of(seq)
    stop = text.update(seq)
    if stop is None and seq.finish_reason not in (None, FinishReason.ERROR):
        stop = text.finish(seq)
    return stop
