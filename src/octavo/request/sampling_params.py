"""How a prompt is to be continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from octavo.config import unknown_keyword
from octavo.errors import SamplingParamsError
from octavo.request import checks

MAX_LOGPROBS = 64
"""The most alternatives that ``logprobs`` or ``prompt_logprobs`` may ask for at one position."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to continue a prompt. ``None`` means "the model's own default" (its ``generation_config.json``), and where
    that is silent the value in brackets.

    Args:
        n: how many continuations to return.
        best_of: how many to grow; the ``n`` with the highest cumulative log-probability are returned [n].
        temperature: 0 is greedy decoding [1.0].
        top_k: keep the k likeliest tokens; 0 or -1 keeps all [0].
        top_p: keep the smallest set of tokens whose probability reaches p [1.0].
        min_p: drop tokens less likely than min_p times the likeliest [0.0].
        repetition_penalty: divides (or, below zero, multiplies) logits of tokens seen in prompt or output [1.0].
        presence_penalty: subtracted once from the logit of a token already generated.
        frequency_penalty: subtracted for each time that a token was generated.
        logit_bias: token id -> added to its logit.
        allowed_token_ids: no other token may be drawn.
        bad_words: strings that must not be generated.
        max_tokens: new tokens at the most [up to the end of the context].
        min_tokens: new tokens before the end-of-sequence, ``stop_token_ids`` or ``stop`` may end the text.
        stop: a string, or several, that end the text; matched across token borders.
        include_stop_str_in_output: keep the stop string in ``text``.
        stop_token_ids: further ids that end the text.
        ignore_eos: do not stop at the model's end-of-sequence ids.
        beam_width: beam search over so many beams; ``n`` of them are returned [1: none].
        length_penalty: a beam's score is its log-probability over its length to this power.
        early_stopping: end a beam search at once when ``beam_width`` beams are finished.
        seed: 64-bit; the same seed draws the same noise whoever shares the batch [drawn by the engine].
        logprobs: report the log-probability of each token and of so many alternatives.
        prompt_logprobs: the same for the prompt; such a request does not use cached prefixes.
        skip_special_tokens: leave special tokens out of ``text``.

    Raises:
        SamplingParamsError: a keyword is unknown, or a value is out of range, of the wrong type, or contradicts
            another.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: list[int] | tuple[int, ...] | None = None
    bad_words: list[str] | tuple[str, ...] | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: str | list[str] | tuple[str, ...] | None = None
    include_stop_str_in_output: bool = False
    stop_token_ids: list[int] | tuple[int, ...] | None = None
    ignore_eos: bool = False
    beam_width: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __new__(cls, *args: Any, **keywords: Any) -> SamplingParams:
        """Refuse unknown keywords with the nearest known name."""
        for name in keywords:
            if name not in cls.__slots__:
                raise SamplingParamsError(unknown_keyword("SamplingParams", name, list(cls.__slots__)))
        return object.__new__(cls)

    def __post_init__(self) -> None:
        checks.integer("n", self.n, low=1)
        checks.integer("best_of", self.best_of, low=1, optional=True)
        if self.best_of is not None and self.best_of < self.n:
            raise SamplingParamsError(f"best_of={self.best_of} is less than n={self.n}: raise best_of or leave it out")
        checks.number("temperature", self.temperature, low=0.0, optional=True)
        checks.integer("top_k", self.top_k, low=-1, optional=True)
        checks.number("top_p", self.top_p, low=0.0, high=1.0, low_open=True, optional=True)
        checks.number("min_p", self.min_p, low=0.0, high=1.0, optional=True)
        checks.number("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True, optional=True)
        checks.number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        checks.number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        checks.integer("max_tokens", self.max_tokens, low=1, optional=True)
        checks.integer("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingParamsError(
                f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}: lower one or raise the other"
            )
        checks.number("length_penalty", self.length_penalty, low=-10.0, high=10.0)
        checks.integer("beam_width", self.beam_width, low=1)
        checks.integer("seed", self.seed, low=-(2**63), high=2**64 - 1, optional=True)
        checks.integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        checks.integer("prompt_logprobs", self.prompt_logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "early_stopping"):
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} must be True or False, not {getattr(self, name)!r}")
        checks.token_ids("stop_token_ids", self.stop_token_ids)
        checks.token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            raise SamplingParamsError("allowed_token_ids is empty: nothing could be drawn; leave it out to allow all")
        checks.logit_bias(self.logit_bias)
        checks.strings("stop", (self.stop,) if isinstance(self.stop, str) else self.stop)
        checks.strings("bad_words", self.bad_words)
        if self.beam_width > 1:
            self._check_beams()

    def _check_beams(self) -> None:
        if self.n > self.beam_width:
            raise SamplingParamsError(
                f"n={self.n} exceeds beam_width={self.beam_width}: a search returns its own beams"
            )
        if self.best_of is not None:
            raise SamplingParamsError("best_of does not go with beam_width: the beams are already ranked")
        if self.temperature not in (None, 0, 0.0, 1, 1.0):
            raise SamplingParamsError("beam search draws nothing: leave temperature out, or set it to 0")
        for name in ("top_k", "top_p", "min_p"):
            if getattr(self, name) is not None:
                raise SamplingParamsError(f"beam search draws nothing: leave {name} out")
        if self.logprobs is not None:
            raise SamplingParamsError("logprobs does not go with beam_width: a beam has its cumulative_logprob")
        if self.stop:
            raise SamplingParamsError("stop strings do not go with beam_width: use stop_token_ids")

    def for_fork(self) -> SamplingParams:
        """What a fork takes over where it is given nothing of its own: everything but ``n``, ``best_of`` (one
        sequence goes on as one) and ``prompt_logprobs``."""
        return _unchecked(self, {"n": self.n if self.beam_width > 1 else 1, "best_of": None, "prompt_logprobs": None})

    @property
    def num_sequences(self) -> int:
        """How many sequences the request grows at once."""
        return self.beam_width if self.beam_width > 1 else (self.best_of or self.n)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def resolve(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """A copy in which the model's ``generation_config.json`` (``defaults``), and then Octavo's own defaults, fill
        every ``None`` among temperature, top_k, top_p, min_p and repetition_penalty. A beam search takes only the
        penalty, and ``do_sample: false`` means greedy."""
        values: dict[str, Any] = {}
        for name, fallback in _RESOLVED.items():
            if getattr(self, name) is None:
                given = defaults.get(name)
                values[name] = fallback if given is None else given
        if self.temperature is None and (self.beam_width > 1 or defaults.get("do_sample") is False):
            values["temperature"] = 0.0
        if self.beam_width > 1:
            # Built unchecked: these neutral values are what "leave it out" means for a search.
            return _unchecked(self, {**values, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 0.0})
        if self.max_tokens is None and isinstance(defaults.get("max_new_tokens"), int):
            values["max_tokens"] = max(defaults["max_new_tokens"], self.min_tokens, 1)
        return replace(self, **values)


_RESOLVED: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}


def _unchecked(params: SamplingParams, values: Mapping[str, Any]) -> SamplingParams:
    copy = object.__new__(SamplingParams)
    for item in fields(SamplingParams):
        object.__setattr__(copy, item.name, values.get(item.name, getattr(params, item.name)))
    return copy
