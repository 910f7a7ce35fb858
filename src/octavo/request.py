"""The nouns: what a user asks (:class:`SamplingParams`, :class:`Request`), the lines of tokens grown for it
(:class:`Sequence`), and what comes back (:class:`RequestOutput`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum, StrEnum
from typing import Any, NamedTuple

from octavo.config import unknown_keyword
from octavo.errors import SamplingParamsError
from octavo.plan import SamplingSpec

PrefixNode = int | tuple[str, str | None]
"""A node of the prefix tree, or the namespace at whose root a sequence's first block hangs."""

MAX_LOGPROBS = 64
"""The most alternatives that ``logprobs`` or ``prompt_logprobs`` may ask for at one position."""

_MAX_INT32 = 2**31 - 1


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
        _integer("n", self.n, low=1)
        _integer("best_of", self.best_of, low=1, optional=True)
        if self.best_of is not None and self.best_of < self.n:
            raise SamplingParamsError(f"best_of={self.best_of} is less than n={self.n}: raise best_of or leave it out")
        _number("temperature", self.temperature, low=0.0, optional=True)
        _integer("top_k", self.top_k, low=-1, optional=True)
        _number("top_p", self.top_p, low=0.0, high=1.0, low_open=True, optional=True)
        _number("min_p", self.min_p, low=0.0, high=1.0, optional=True)
        _number("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True, optional=True)
        _number("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        _number("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        _integer("max_tokens", self.max_tokens, low=1, optional=True)
        _integer("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise SamplingParamsError(
                f"min_tokens={self.min_tokens} exceeds max_tokens={self.max_tokens}: lower one or raise the other"
            )
        _number("length_penalty", self.length_penalty, low=-10.0, high=10.0)
        _integer("beam_width", self.beam_width, low=1)
        _integer("seed", self.seed, low=-(2**63), high=2**64 - 1, optional=True)
        _integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        _integer("prompt_logprobs", self.prompt_logprobs, low=0, high=MAX_LOGPROBS, optional=True)
        for name in ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "early_stopping"):
            if not isinstance(getattr(self, name), bool):
                raise SamplingParamsError(f"{name} must be True or False, not {getattr(self, name)!r}")
        _token_ids("stop_token_ids", self.stop_token_ids)
        _token_ids("allowed_token_ids", self.allowed_token_ids)
        if self.allowed_token_ids is not None and len(self.allowed_token_ids) == 0:
            raise SamplingParamsError("allowed_token_ids is empty: nothing could be drawn; leave it out to allow all")
        _logit_bias(self.logit_bias)
        _strings("stop", (self.stop,) if isinstance(self.stop, str) else self.stop)
        _strings("bad_words", self.bad_words)
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


def _integer(
    name: str, value: object, *, low: int | None = None, high: int | None = None, optional: bool = False
) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise SamplingParamsError(f"{name} must be an integer, not {value!r}")
    high = _MAX_INT32 if high is None else high
    if (low is not None and value < low) or value > high:
        raise SamplingParamsError(f"{name}={value} is out of range: use {low} to {high}")


def _number(
    name: str,
    value: object,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    optional: bool = False,
) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SamplingParamsError(f"{name} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise SamplingParamsError(f"{name}={value} is not finite")
    if low is not None and (value < low or (low_open and value == low)):
        raise SamplingParamsError(f"{name}={value} must be {'above' if low_open else 'at least'} {low}")
    if high is not None and value > high:
        raise SamplingParamsError(f"{name}={value} must be at most {high}")


def _token_ids(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple):
        raise SamplingParamsError(f"{name} must be a list of token ids, not {value!r}")
    for item in value:
        _integer(f"{name} entry", item, low=0)


def _logit_bias(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise SamplingParamsError(f"logit_bias must map token ids to numbers, not {value!r}")
    for token, bias in value.items():
        _integer("logit_bias key", token, low=0)
        _number("logit_bias value", bias, low=-100.0, high=100.0)


def _strings(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, list | tuple):
        raise SamplingParamsError(f"{name} must be a list of strings, not {value!r}")
    for item in value:
        if not isinstance(item, str) or not item:
            raise SamplingParamsError(f"{name} holds {item!r}: every entry must be a string that is not empty")


class SequenceState(Enum):
    """Where a sequence stands."""

    WAITING = "waiting"  #: holds no blocks on the device
    RUNNING = "running"  #: holds blocks and a slot
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  #: end-of-sequence, a stop token or a stop string
    LENGTH = "length"  #: max_tokens, or the end of the context
    ABORT = "abort"  #: the caller withdrew it
    ERROR = "error"  #: it failed: ``RequestOutput.error`` says of what


class BlockTable:
    """A sequence's logical -> physical map for one layer group: ``blocks[i]`` holds positions ``i * block_size``
    and following. ``sent`` leading entries are known to the executor; ``gone`` leading entries are HOLEs, for their
    tokens have left the group's window."""

    __slots__ = ("blocks", "gone", "sent")

    def __init__(self) -> None:
        self.blocks: list[int] = []
        self.sent = 0
        self.gone = 0


class Swapped(NamedTuple):
    """What of a sequence waits in host memory, and where.

    The blocks before ``first`` were left on the device, in the hands of others that share them: if they are gone when
    the sequence comes back, it computes those again, and no more.
    """

    first: int  #: logical block that the first of ``pages`` holds
    length: int  #: tokens whose KV the sequence had
    pages: tuple[tuple[int, ...], ...]  #: for each logical block from ``first`` on, the host block of each layer group


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


class NoiseIndexes:
    """Hands out noise indexes: no two sequences of a request and of all its forks draw with the same."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> int:
        """The first of ``count`` new indexes in a row."""
        first = self._next
        self._next += count
        return first


class Request:
    """What a user asked. The unit of rank, admission and preemption; its sequences are the unit of compute."""

    __slots__ = (
        "arrival",
        "failure",
        "finished_at",
        "first_index",
        "first_scheduled",
        "first_token",
        "hypotheses",
        "id",
        "last_run",
        "live",
        "max_new_tokens",
        "namespace",
        "noise",
        "num_cached",
        "num_copies",
        "num_preemptions",
        "num_shared",
        "num_slots",
        "num_swapped_in",
        "num_swapped_out",
        "params",
        "priority",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "rank",
        "salt",
        "seed",
        "sequences",
        "source",
        "spec",
        "stop_ids",
        "user",
    )

    def __init__(
        self,
        id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        priority: int = 0,
        arrival: float = 0.0,
        user: str | None = None,
        salt: str | None = None,
        seed: int = 0,
        noise: NoiseIndexes | None = None,
        source: Sequence | None = None,
        max_new_tokens: int = 1,
        stop_ids: tuple[int, ...] = (),
        spec: SamplingSpec | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.priority = priority  # lower is more urgent, as in vLLM
        self.arrival = arrival
        self.user = user
        self.salt = salt
        self.seed = seed
        self.noise = noise or NoiseIndexes()  # shared with its forks
        self.first_index = self.noise.take(params.num_sequences)  # the noise index of its first sequence
        self.source = source  # a fork's: the sequence whose memory it shares if that is resident when it is admitted
        self.max_new_tokens = max_new_tokens  # params.max_tokens, cut to the context
        self.stop_ids = frozenset(stop_ids)  # end-of-sequence ids (unless ignored) and stop_token_ids
        self.spec = spec or SamplingSpec()
        self.rank: tuple[float, int] = (arrival, 0)
        self.namespace: tuple[str, str | None] = ("salt", salt)  # the root of its prefixes
        self.sequences: list[Sequence] = []  # in order of index; for a finished beam search, best first
        self.live: list[Sequence] = []  # those of them that still grow
        self.hypotheses: list[tuple[float, Sequence]] = []  # a beam search's finished beams, best first
        self.num_slots = params.num_sequences  # executor slots that it holds or has been promised
        self.failure: str | None = None  # why it ended in FinishReason.ERROR
        self.prompt_logprobs: list[dict[int, float] | None] | None = None
        self.num_cached = 0  # prompt tokens found in the prefix tree at first admission
        self.num_shared = 0  # blocks taken over from the prefix tree, a sibling or a fork's source
        self.num_copies = 0  # shared blocks copied because it wrote into them
        self.num_preemptions = 0
        self.num_swapped_out = 0  # blocks moved to host memory
        self.num_swapped_in = 0  # and back: fewer, where the prefix tree still had them
        self.last_run = 0  # the number of its latest turn to compute, counted where victims are chosen by it
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.finished_at: float | None = None

    def __repr__(self) -> str:
        return f"Request(id={self.id!r}, prompt={len(self.prompt_token_ids)} tokens, sequences={len(self.sequences)})"


@dataclass(slots=True)
class CompletionOutput:
    """One continuation. ``logprobs[i]`` maps token ids at new position i to log-probabilities: the token drawn and
    the alternatives asked for."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, float]] | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times in seconds on the engine's clock, and what memory did for the request."""

    arrival: float = 0.0
    first_scheduled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    num_cached_tokens: int = 0  #: prompt tokens whose KV was in memory already when it was first admitted
    num_shared_blocks: int = 0  #: blocks taken over from the prefix tree, a sibling or a fork's source
    num_copies: int = 0  #: shared blocks copied because it wrote into them (copy-on-write)
    num_preemptions: int = 0
    num_swapped_out: int = 0  #: blocks moved to host memory when it was preempted
    num_swapped_in: int = 0  #: blocks moved back


@dataclass(slots=True)
class RequestOutput:
    """All that is known of a request so far. ``outputs`` are in order of index (or, for beams and best_of, of rank)."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    prompt_logprobs: list[dict[int, float] | None] | None = None
    error: str | None = None  #: what failed, where ``finish_reason`` is "error"

    @property
    def text(self) -> str:
        """The first output's text."""
        return self.outputs[0].text if self.outputs else ""
