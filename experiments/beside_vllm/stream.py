"""What is sent to both engines: requests whose every token is known beforehand, and the memory they compete for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arrival:
    """One request. ``outputs`` holds the tokens it will generate, one tuple for each parallel sample."""

    name: str
    step: int  #: it is there before this step is planned
    prompt: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    priority: int = 0  #: lower is more urgent
    salt: str | None = None
    withdrawn: int | None = None  #: the caller gives it up before this step is planned

    def rows(self) -> list[str]:
        """The name of each of its samples."""
        return [self.name] if len(self.outputs) == 1 else [f"{self.name}/{i}" for i in range(len(self.outputs))]


@dataclass(frozen=True)
class Stream:
    """A load, and the engine that it meets. ``num_blocks`` are usable blocks."""

    name: str
    story: str  #: what it is there to show
    num_blocks: int
    arrivals: tuple[Arrival, ...]
    block_size: int = 4
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 64
    policy: str = "fcfs"
    ageing_seconds: float = 1e9  #: Octavo's alone: so slow that nothing ages, as in vLLM. A step is a second
    vllm: dict[str, Any] = field(default_factory=dict)  #: further fields of vLLM's SchedulerConfig
    prefix_caching: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for the other process."""
        return asdict(self)

    @classmethod
    def of(cls, data: dict[str, Any]) -> Stream:
        """The inverse of :meth:`as_dict`, from JSON."""
        arrivals = tuple(
            Arrival(**{**each, "prompt": tuple(each["prompt"]), "outputs": tuple(map(tuple, each["outputs"]))})
            for each in data["arrivals"]
        )
        return cls(**{**data, "arrivals": arrivals})


def digests(salt: str | None, tokens: Iterable[int]) -> list[int]:
    """For each position, a 64-bit digest of all that its KV depends on: the salt and the tokens up to it."""
    digest = 0 if salt is None else int.from_bytes(salt.encode(), "little") + 1
    chain = []
    for token in tokens:
        digest = hash((digest, token))  # of integers only, so the same in every process
        chain.append(digest)
    return chain


def block_names(stream: Stream) -> dict[int, str]:
    """Readable names for the contents of full blocks: the digest of a block's last position -> ``A[0]``, after the
    first request that has this block. The same on both sides, whatever numbers their blocks bear."""
    names: dict[int, str] = {}
    for arrival in stream.arrivals:
        for row, output in zip(arrival.rows(), arrival.outputs, strict=True):
            chain = digests(arrival.salt, arrival.prompt + output)
            for i, digest in enumerate(chain[stream.block_size - 1 :: stream.block_size]):
                names.setdefault(digest, f"{row}[{i}]")
    return names


def text(letter: str, count: int) -> tuple[int, ...]:
    """``count`` tokens that stand under no other letter; a longer text begins with every shorter one."""
    return tuple(ord(letter) * 1000 + i for i in range(count))


def ask(
    name: str,
    step: int,
    prompt: tuple[int, ...],
    output: int = 1,
    *,
    samples: int = 1,
    priority: int = 0,
    salt: str | None = None,
    withdrawn: int | None = None,
) -> Arrival:
    """A request that is answered with ``output`` tokens (for each sample) that no other answer has."""
    outputs = tuple(
        tuple(hash((step, *map(ord, name), sample, i)) % 100_000 + 500_000 for i in range(output))
        for sample in range(samples)
    )
    return Arrival(name, step, prompt, outputs, priority, salt, withdrawn)
