"""From what a user asks to a :class:`~octavo.request.Request`: every check that can be made on arrival."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from octavo.config import EngineConfig
from octavo.engine.retention import Origin
from octavo.engine.tokenizer import Tokenizer
from octavo.errors import (
    EmptyPromptError,
    InvalidTokenError,
    PromptTooLongError,
    RequestError,
    RequestTooLargeError,
    SamplingParamsError,
)
from octavo.plan import ModelFacts, SamplingSpec
from octavo.request import Request, SamplingParams, Sequence
from octavo.scheduler.beam import candidates_wanted

Prompt = str | list[int]

COLDEST = 1e-5
"""Temperatures below it are greedy: dividing logits by them would overflow, and the draw would not differ."""

_MASK = (1 << 64) - 1


class Admission:
    """Turns prompts and parameters into requests for one model.

    Args:
        facts: the model's limits.
        tokenizer: encodes prompts and bad words.
        defaults: the model's ``generation_config.json``.
        config: the engine's; its policy, its seed (for requests without one of their own) and its block size.
        depth: plans in flight beside the one being built.
    """

    def __init__(
        self, facts: ModelFacts, tokenizer: Tokenizer, defaults: Mapping[str, Any], config: EngineConfig, depth: int
    ) -> None:
        self._facts = facts
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._seed = config.seed
        self._policy = config.policy
        self._block_size = config.block_size
        self._stride = config.max_num_batched_tokens * (depth + 1)
        self._count = 0

    def request(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        *,
        request_id: str,
        arrival: float,
        priority: int = 0,
        user: str | None = None,
        cache_salt: str | None = None,
        origin: Origin | None = None,
        source: Sequence | None = None,
    ) -> Request:
        """Check everything and build the request; nothing is changed when it is refused. A fork has the seed of its
        ``origin``, unless ``params`` bring one, with a noise index of its own; ``source`` is what it may share memory
        with.

        Raises:
            RequestError: one of its kinds; the message says what to change.
        """
        if params is not None and not isinstance(params, SamplingParams):
            raise SamplingParamsError(f"params must be SamplingParams, not {type(params).__name__}")
        if isinstance(priority, bool) or not isinstance(priority, int) or abs(priority) > 2**31:
            raise RequestError(f"priority must be an integer (lower is more urgent), not {priority!r}")
        if priority and self._policy != "priority":
            raise RequestError(
                f"priority={priority} means nothing under policy={self._policy!r}: leave it out, or make the engine "
                "with policy='priority'"
            )
        for name, value in (("request_id", request_id), ("user", user), ("cache_salt", cache_salt)):
            if value is not None and (not isinstance(value, str) or not value or len(value) > 1024):
                raise RequestError(f"{name} must be a string of 1 to 1,024 characters, not {value!r}")
        token_ids = self._token_ids(prompt)
        resolved = self._resolve(params or SamplingParams())
        room = self._facts.max_model_len - len(token_ids)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(token_ids)} tokens; the context served is {self._facts.max_model_len}, and one "
                "must be left for the answer: shorten the prompt, or raise max_model_len"
            )
        if resolved.min_tokens > room:
            raise SamplingParamsError(
                f"min_tokens={resolved.min_tokens} exceeds the {room} tokens that the context leaves after the prompt"
            )
        asked = len(token_ids) + (0 if params is None else params.max_tokens or 0)
        needed = sum(group.blocks_for(asked, self._block_size, self._stride) for group in self._facts.groups)
        if needed > self._facts.num_blocks:
            raise RequestTooLargeError(
                f"prompt and max_tokens ({len(token_ids)} + {asked - len(token_ids)} tokens) can never fit the block "
                f"pool: they take {needed} blocks of {self._facts.num_blocks}; lower max_tokens, or raise num_blocks"
            )
        eos = () if resolved.ignore_eos else self._facts.eos_token_ids
        stop_ids = tuple(dict.fromkeys((*eos, *(resolved.stop_token_ids or ()))))
        self._count += 1
        drawn = _mix(self._seed, self._count) if origin is None else origin.seed
        return Request(
            request_id,
            token_ids,
            resolved,
            prompt=prompt if isinstance(prompt, str) else None,
            priority=priority,
            arrival=arrival,
            user=user,
            salt=cache_salt,
            seed=drawn if resolved.seed is None else resolved.seed & _MASK,
            noise=None if origin is None else origin.noise,
            source=source,
            max_new_tokens=min(resolved.max_tokens or room, room),
            stop_ids=stop_ids,
            spec=self._spec(resolved, stop_ids),
        )

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt)
            if ids and max(ids) >= self._facts.vocab_size:
                raise InvalidTokenError(
                    f"the tokenizer gives token id {max(ids)}, but the model knows 0 to {self._facts.vocab_size - 1}: "
                    "they do not belong together; set tokenizer= to the model's own"
                )
        elif isinstance(prompt, Iterable) and not isinstance(prompt, bytes | Mapping):
            ids = [self._token_id(item, "prompt token id") for item in prompt]
        else:
            raise RequestError(f"a prompt must be a string or a list of token ids, not {type(prompt).__name__}")
        if not ids:
            raise EmptyPromptError("the prompt has no tokens: write something, or begin with the model's bos token")
        return ids

    def _token_id(self, item: object, name: str, error: type[RequestError] = InvalidTokenError) -> int:
        try:
            if isinstance(item, bool):
                raise TypeError
            value = operator.index(item)  # type: ignore[arg-type]
        except TypeError:
            raise error(f"{name} {item!r} is not an integer") from None
        if not 0 <= value < self._facts.vocab_size:
            raise error(f"{name} {value} is outside the vocabulary: use 0 to {self._facts.vocab_size - 1}")
        return value

    def _resolve(self, params: SamplingParams) -> SamplingParams:
        resolved = params.resolve(self._defaults)
        if resolved.temperature is not None and 0 < resolved.temperature < COLDEST:
            resolved = replace(resolved, temperature=0.0)
        for name in ("stop_token_ids", "allowed_token_ids"):
            for item in getattr(resolved, name) or ():
                self._token_id(item, f"{name} entry", SamplingParamsError)
        for item in resolved.logit_bias or ():
            self._token_id(item, "logit_bias key", SamplingParamsError)
        return resolved

    def _spec(self, params: SamplingParams, stop_ids: tuple[int, ...]) -> SamplingSpec:
        vocab = self._facts.vocab_size
        ranked = params.best_of is not None and params.best_of > params.n
        wide = params.beam_width > 1
        top_k = params.top_k or 0
        # The resolved parameters hold no None among these; "or" only tells the type checker so.
        return SamplingSpec(
            temperature=float(params.temperature or 0.0),
            top_k=top_k if 0 < top_k < vocab else 0,
            top_p=float(1.0 if params.top_p is None else params.top_p),
            min_p=float(params.min_p or 0.0),
            repetition_penalty=float(params.repetition_penalty or 1.0),
            presence_penalty=float(params.presence_penalty),
            frequency_penalty=float(params.frequency_penalty),
            logit_bias=tuple(sorted((token, float(bias)) for token, bias in (params.logit_bias or {}).items())),
            allowed_token_ids=None
            if params.allowed_token_ids is None
            else tuple(sorted(set(params.allowed_token_ids))),
            bad_words=self._bad_words(params.bad_words or ()),
            min_tokens=params.min_tokens if stop_ids else 0,
            stop_ids=stop_ids,
            logprobs=0 if ranked and params.logprobs is None else _at_most(params.logprobs, vocab),
            prompt_logprobs=_at_most(params.prompt_logprobs, vocab),
            top=min(candidates_wanted(params.beam_width, len(stop_ids)), vocab) if wide else 0,
        )

    def _bad_words(self, words: Iterable[str]) -> tuple[tuple[int, ...], ...]:
        """A word is forbidden as it is tokenized at the beginning of a text and after a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in words:
            for spelling in (word, " " + word.lstrip()):
                ids = tuple(self._tokenizer.encode(spelling, add_special_tokens=False))
                if ids:
                    found[ids] = None
        return tuple(found)


def sampling_params(params: SamplingParams | None, keywords: Mapping[str, Any]) -> SamplingParams | None:
    """``params`` with keywords over them; None where neither is given.

    Raises:
        SamplingParamsError: a keyword is unknown, or a value wrong.
    """
    return replace(params or SamplingParams(), **keywords) if keywords else params


def _at_most(count: int | None, limit: int) -> int | None:
    return None if count is None else min(count, limit)


def _mix(seed: int, count: int) -> int:
    """A 64-bit seed for the count-th request (splitmix64)."""
    z = (seed + count * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
