"""The workloads that engines are compared by, the same for all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Literal

Request = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that come all at once: lengths are fixed, token ids are drawn anew for every run, so that no engine can
    answer from what it has kept of the run before."""

    name: str
    about: str
    prompts: tuple[int, ...]  #: tokens of each, a common prefix left out
    outputs: tuple[int, ...]
    measures: Literal["speed of both phases", "output tokens", "wall time"]
    prefix: int = 0  #: tokens that all prompts begin with

    def draw(self, vocab_size: int, seed: object) -> Request:
        """Token ids and output lengths, as engines take them."""
        rng = random.Random(f"{self.name}/{seed}")
        common = [rng.randrange(1, vocab_size) for _ in range(self.prefix)]
        prompts = [common + [rng.randrange(1, vocab_size) for _ in range(length)] for length in self.prompts]
        return {"prompts": prompts, "outputs": list(self.outputs)}

    def prefill(self) -> Workload | None:
        """The same with one token out, where the phases are told apart by it."""
        if self.measures != "speed of both phases":
            return None
        return replace(self, name=f"{self.name} prefill", outputs=(1,) * len(self.outputs))

    def figures(self, seconds: float, prefill_seconds: float) -> dict[str, float]:
        """What a run says: tokens a second, or seconds."""
        if self.measures == "output tokens":
            return {"output_tokens_per_second": sum(self.outputs) / seconds}
        if self.measures == "wall time":
            return {"wall_seconds": seconds}
        return {
            "prefill_tokens_per_second": sum(self.prompts) / prefill_seconds,
            "decode_tokens_per_second": (sum(self.outputs) - len(self.outputs)) / max(seconds - prefill_seconds, 1e-9),
        }

    def scaled(self, scale: float) -> Workload:
        """The first of its requests alone: ``scale`` of them, two at least where there are several."""
        count = max(min(2, len(self.prompts)), round(len(self.prompts) * scale))
        return replace(self, prompts=self.prompts[:count], outputs=self.outputs[:count])


def _lengths(count: int, low: int, high: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randint(low, high) for _ in range(count))


WORKLOADS = {
    load.name: load
    for load in (
        Workload("W1", "one stream, 128 tokens in, 128 out", (128,), (128,), "speed of both phases"),
        Workload(
            "W2",
            "16 requests, 128-256 tokens in, 64 out",
            _lengths(16, 128, 256, 2),
            (64,) * 16,
            "speed of both phases",
        ),
        Workload(
            "W3",
            "16 requests, 512 tokens in common and 32 of their own in, 32 out",
            (32,) * 16,
            (32,) * 16,
            "wall time",
            prefix=512,
        ),
        Workload(
            "W4",
            "64 requests, 16-256 tokens in, 16-128 out, 32 at once",
            _lengths(64, 16, 256, 0),
            _lengths(64, 16, 128, 1),
            "output tokens",
        ),
    )
}


GPU_WORKLOADS = {
    load.name: load
    for load in (
        Workload("one", "one stream, 512 tokens in, 256 out", (512,), (256,), "speed of both phases"),
        Workload("many", "256 requests, 960 tokens in, 128 out", (960,) * 256, (128,) * 256, "speed of both phases"),
        Workload(
            "mixed",
            "256 requests, 100-1,024 tokens in, 100-1,024 out (nano-vllm's workload)",
            _lengths(256, 100, 1024, 0),
            _lengths(256, 100, 1024, 1),
            "output tokens",
        ),
    )
}
