"""How fast an engine is: one stream and many, told apart into prefill and decoding."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from octavo.engine.engine import LLMEngine
from octavo.errors import ConfigError
from octavo.request import SamplingParams

Advance = Callable[[int, int], None]
"""``advance(done, total)``: rounds."""


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that come all at once, all alike: random tokens in, greedy tokens out, no end before the last.

    Raises:
        ConfigError: a number is too small.
    """

    concurrency: int = 16
    prompt_tokens: int = 128
    output_tokens: int = 128
    rounds: int = 3  #: that count; one before them warms up

    def __post_init__(self) -> None:
        for name, least in (("concurrency", 1), ("prompt_tokens", 1), ("output_tokens", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                because = ": decoding begins at the second" if name == "output_tokens" else ""
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}{because}")

    def check(self, engine: LLMEngine) -> None:
        """Whether the engine can serve it all at once.

        Raises:
            ConfigError: it cannot; the message says what to change.
        """
        facts, config = engine.facts, engine.config
        length = self.prompt_tokens + self.output_tokens
        if length > facts.max_model_len:
            raise ConfigError(
                f"prompt_tokens={self.prompt_tokens} and output_tokens={self.output_tokens} make {length}, but the "
                f"context served is {facts.max_model_len} tokens: ask for less, or raise max_model_len"
            )
        if self.concurrency > config.max_num_seqs:
            raise ConfigError(
                f"concurrency={self.concurrency} exceeds max_num_seqs={config.max_num_seqs}: raise that, or "
                "ask for less"
            )
        needed = self.concurrency * sum(
            group.blocks_for(length, config.block_size, config.max_num_batched_tokens) for group in facts.groups
        )
        if needed > facts.num_blocks:
            raise ConfigError(
                f"{self.concurrency} requests of {length} tokens hold {needed} blocks, but the pool has "
                f"{facts.num_blocks}: raise num_blocks, or ask for less"
            )


@dataclass(slots=True)
class Speed:
    """One load's figures, a value for each round. Rates are tokens a second, times are seconds."""

    concurrency: int
    prefill: list[float] = field(default_factory=list)  #: prompt tokens, while nothing else is computed
    decode: list[float] = field(default_factory=list)  #: output tokens after the first, in the time after the prefill
    output: list[float] = field(default_factory=list)  #: output tokens over the whole time
    first_token: list[float] = field(default_factory=list)  #: from arrival, the median over the requests


@dataclass(frozen=True, slots=True)
class Measured:
    """What :func:`measure` found."""

    load: Load
    single: Speed
    batched: Speed | None  #: None where the load is a single request


def measure(engine: LLMEngine, load: Load, advance: Advance | None = None) -> Measured:
    """Run the load, and one of its requests alone, in turns.

    Every run has random tokens of its own, so that no prefix is found in memory.

    Raises:
        ConfigError: the engine cannot serve the load at once; nothing was run.
    """
    load.check(engine)
    speeds = [Speed(count) for count in dict.fromkeys((1, load.concurrency))]
    random_tokens = random.Random(0)
    for turn in range(load.rounds + 1):
        if advance is not None:
            advance(turn, load.rounds + 1)
        for speed in speeds:
            _run(engine, load, speed if turn else Speed(speed.concurrency), random_tokens)
    return Measured(load, speeds[0], speeds[1] if len(speeds) > 1 else None)


def _run(engine: LLMEngine, load: Load, speed: Speed, rng: random.Random) -> None:
    """A round of one load: the prefill alone, then the whole."""
    count = speed.concurrency
    prefill, first_tokens = _seconds(engine, list(_prompts(engine, load, count, rng)), 1)
    whole, _ = _seconds(engine, list(_prompts(engine, load, count, rng)), load.output_tokens)
    speed.prefill.append(count * load.prompt_tokens / prefill)
    speed.decode.append(count * (load.output_tokens - 1) / max(whole - prefill, 1e-9))
    speed.output.append(count * load.output_tokens / whole)
    speed.first_token.append(sorted(first_tokens)[count // 2])


def _prompts(engine: LLMEngine, load: Load, count: int, rng: random.Random) -> Iterator[list[int]]:
    for _ in range(count):
        yield [rng.randrange(engine.facts.vocab_size) for _ in range(load.prompt_tokens)]


def _seconds(engine: LLMEngine, prompts: list[list[int]], output_tokens: int) -> tuple[float, list[float]]:
    """The whole time, and each request's to its first token."""
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=output_tokens)
    began = time.perf_counter()
    outputs = engine.generate(prompts, params)
    seconds = time.perf_counter() - began
    metrics = [output.metrics for output in outputs]
    return seconds, [(each.first_token or each.arrival) - each.arrival for each in metrics]
