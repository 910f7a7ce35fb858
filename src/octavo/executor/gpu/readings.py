"""What the numbers that come back from a step mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octavo.executor.gpu.prompt_scores import ScoredPrompt
from octavo.executor.gpu.sampler import FAILURES
from octavo.executor.reads import verify
from octavo.executor.sampler import NOT_FINITE
from octavo.kernels.drawn import DrawFailure
from octavo.plan import Chunk, ChunkResult, Sample, SamplingSpec, Want

Pairs = tuple[tuple[int, float], ...]


class PlainResults(dict[int, ChunkResult]):
    """The result of a chunk that drew a token and was asked for no more, by the token: made once each."""

    def __missing__(self, token: int) -> ChunkResult:
        result = self[token] = ChunkResult((Sample(token),))
        return result


@dataclass(slots=True)
class PlainReading:
    """How to read a step of which each chunk drew one token, and was asked for no more."""

    plain: PlainResults
    count: int  #: chunks

    def results(self, fetched: list[list[Any]]) -> tuple[ChunkResult, ...]:
        """One for each chunk.

        Args:
            fetched: ``[2, rows]``: tokens, and what failed.
        """
        tokens, failures = fetched[0]
        plain = self.plain
        if not any(failures[: self.count]):
            return tuple([plain[token] for token in tokens[: self.count]])
        drawn = zip(tokens[: self.count], failures, strict=False)
        return tuple([_failed(failure) if failure else plain[token] for token, failure in drawn])


@dataclass(slots=True)
class Reading:
    """How to read any step: made when it is submitted, for by the time it is collected slots may have changed hands."""

    chunks: tuple[Chunk, ...]
    specs: tuple[SamplingSpec, ...]  #: each chunk's
    spans: Sequence[tuple[int, int]]  #: each chunk's draws, or row among the beams
    sources: Sequence[int]  #: each draw's row
    reported: Sequence[int]  #: rows whose alternatives were sent; () where none were
    single: Sequence[bool]  #: for each chunk: of its drafts none counts, whatever came of them
    has_beams: bool
    prompts: Sequence[tuple[ScoredPrompt, int]] = ()  #: with each, how many arrays were sent for it

    def results(self, fetched: list[list[Any]]) -> tuple[ChunkResult, ...]:
        """One for each chunk.

        Args:
            fetched: tokens, log-probabilities and what failed; ids and log-probabilities of the alternatives, if any
                row has them; of the beams' likeliest, and what failed, if there are beams; and what prompts have.
        """
        tokens, logprobs, failures = fetched[:3]
        parts = iter(fetched[3:])
        tops: dict[int, Pairs] = {}
        if self.reported:
            ids, values = next(parts), next(parts)
            tops = {row: _pairs(ids[at], values[at]) for at, row in enumerate(self.reported)}
        beams = [next(parts) for _ in range(3)] if self.has_beams else []
        results = []
        for chunk, spec, (begin, end), single in zip(self.chunks, self.specs, self.spans, self.single, strict=True):
            if chunk.want is Want.LOGPROBS:
                results.append(_searched(spec.top, *(column[begin] for column in beams)))
                continue
            drawn = []
            for at in range(begin, end):
                if failures[at]:
                    drawn.append(_failed(failures[at]))
                elif spec.logprobs is None:
                    drawn.append(ChunkResult((Sample(tokens[at]),)))
                else:
                    top = tops.get(self.sources[at], ())[: spec.logprobs]
                    drawn.append(ChunkResult((Sample(tokens[at], logprobs[at], top),)))
            results.append(_joined(chunk, drawn[:1] if single else drawn))
        for prompt, count in self.prompts:
            samples = prompt.samples([next(parts) for _ in range(count)])
            at = prompt.index
            results[at] = ChunkResult(error=NOT_FINITE) if samples is None else results[at]._replace(prompt=samples)
        return tuple(results)


def _joined(chunk: Chunk, drawn: list[ChunkResult]) -> ChunkResult:
    """What came of a chunk's draws together."""
    if len(drawn) == 1:
        return drawn[0]
    if chunk.drafts:
        return verify(chunk, drawn)
    failure = next((each for each in drawn if each.error is not None), None)
    return failure or ChunkResult(tuple(each.samples[0] for each in drawn))


def _searched(most: int, ids: list[int], scores: list[float], failure: int) -> ChunkResult:
    """What a beam's row is for: the likeliest tokens that are not excluded."""
    if failure:
        return _failed(failure)
    return ChunkResult(top=tuple(pair for pair in _pairs(ids, scores)[:most] if pair[1] != float("-inf")))


def _pairs(ids: list[int], values: list[float]) -> Pairs:
    return tuple(zip(ids, values, strict=True))


def _failed(failure: int) -> ChunkResult:
    return ChunkResult(error=FAILURES[DrawFailure(failure)])
