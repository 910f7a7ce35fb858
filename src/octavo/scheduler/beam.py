"""Beam search, one step at a time: which beams go on, which are finished, and when the search is over.

The rules are those of transformers' ``generate``: a finished beam's score is its log-probability over its number of
new tokens to the power of ``length_penalty``; only candidates among the best ``beam_width`` may finish; the search ends
when ``beam_width`` beams are finished and no running one could beat the worst of them at the present length (or at
once, with ``early_stopping``).
"""

from __future__ import annotations

from typing import NamedTuple

from octavo.request import Request, Sequence

TopTokens = tuple[tuple[int, float], ...]


class Extension(NamedTuple):
    """A beam to be grown by one token."""

    parent: Sequence
    token: int
    score: float  #: its cumulative log-probability, the token included


class BeamStep(NamedTuple):
    """What one step of a search decides."""

    running: list[Extension]  #: the next step's beams, best first; empty when the search is over
    finished: list[Extension]  #: candidates that ended in this step


def candidates_wanted(beam_width: int, num_stop_ids: int) -> int:
    """How many tokens of each beam must be known so that ``beam_width`` unfinished candidates are among them."""
    return max(2, 1 + num_stop_ids) * beam_width


def advance(request: Request, beams: list[tuple[Sequence, TopTokens]]) -> BeamStep:
    """Choose among the extensions of all beams (each with its likeliest tokens, best first)."""
    width = request.params.beam_width
    wanted = candidates_wanted(width, len(request.stop_ids))
    candidates = [
        Extension(seq, token, seq.cumulative_logprob + logprob) for seq, top in beams for token, logprob in top
    ]
    # Equal scores: the earlier beam, then the earlier token in its list, as a stable sort leaves them.
    candidates.sort(key=lambda extension: -extension.score)
    running: list[Extension] = []
    finished: list[Extension] = []
    at_limit = len(beams[0][0].tokens) + 1 >= beams[0][0].limit
    for place, candidate in enumerate(candidates[:wanted]):
        if at_limit or candidate.token in request.stop_ids:
            if place < width:
                finished.append(candidate)
        elif len(running) < width:
            running.append(candidate)
    return BeamStep(running, finished)


def final_score(request: Request, extension: Extension) -> float:
    """A finished beam's score."""
    length = len(extension.parent.tokens) + 1 - extension.parent.num_prompt
    return float(extension.score / length**request.params.length_penalty)


def is_over(request: Request, running: list[Extension]) -> bool:
    """Whether the search ends here; ``running`` has not been appended to its parents yet."""
    if not running:
        return True
    if len(request.hypotheses) < request.params.beam_width:
        return False
    if request.params.early_stopping:
        return True
    return final_score(request, running[0]) <= request.hypotheses[-1][0]
