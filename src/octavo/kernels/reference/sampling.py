"""Drawing tokens, and their log-probabilities."""

from __future__ import annotations

import torch

from octavo.kernels import noise
from octavo.kernels.drawn import DrawFailure, Drawn


def keep(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    """Which tokens a draw may take: bool [B, V].

    ``scaled`` [B, V] float32 is (logit - largest logit) / temperature. In order: top_k keeps the k largest (0: all);
    top_p keeps, of those renormalised, the shortest run in descending order whose probabilities reach p, one token at
    least; min_p keeps tokens at least min_p times as likely as the likeliest. Among equals the lower id comes first.
    """
    ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scaled.shape[1], device=scaled.device)
    limit = torch.where(top_k > 0, top_k, scaled.shape[1])
    kept = ranks < limit[:, None]
    weights = ordered.exp()
    mass = torch.where(kept, weights, 0.0).double()
    before = mass.cumsum(-1) - mass
    nucleus = (before < top_p[:, None].double() * mass.sum(-1, keepdim=True)) | (ranks == 0)
    kept &= nucleus | (top_p[:, None] >= 1.0)
    kept &= (weights >= min_p[:, None]) | (ranks == 0)
    return torch.zeros_like(kept).scatter_(1, ids, kept)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    indexes: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """One token for each row of ``logits``, int64 [B]: the arg-max of scaled logits plus Gumbel noise over what
    :func:`keep` leaves, or the plain arg-max (first of equals) where temperature is 0.

    Args:
        logits: float32 [B, V]; -inf excludes a token. What is drawn from a row with NaN or +inf is unspecified.
        temperature: float32 [B], 0 is greedy.
        top_k: int32 [B], 0 keeps all.
        top_p: float32 [B], 1 keeps all.
        min_p: float32 [B], 0 keeps all.
        seeds: int64 [B], 64-bit words held as int64.
        indexes: int64 [B], the sequence's noise index.
        positions: int64 [B], the position the token will stand at.
    """
    greedy = temperature == 0
    shifted = logits - logits.amax(-1, keepdim=True)
    scaled = shifted / torch.where(greedy, 1.0, temperature)[:, None]
    perturbed = scaled + noise.gumbel(noise.words(seeds, indexes, positions, logits.shape[1]))
    perturbed = perturbed.masked_fill(~keep(scaled, top_k, top_p, min_p), float("-inf"))
    return torch.where(greedy[:, None], logits, perturbed).argmax(-1)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row of ``logits`` float32 [B, V], of equals the first: int64 [B]; -1 for a row that
    holds a NaN or an infinity."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)


def draw(
    logits: torch.Tensor,
    sources: torch.Tensor | None,
    slots: torch.Tensor,
    indexes: torch.Tensor,
    positions: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    masked: bool = False,
    out: Drawn | None = None,
) -> Drawn:
    """:func:`sample` for a batch whose parameters stand in columns of ``S`` slots, and what a draw reports.

    Args:
        logits: floating [R, V], rows contiguous.
        sources: int64 [D], the row of ``logits`` that each draw is made from; None: draw i from row i (D = R).
        slots: int64 [D], where each draw's parameters stand; a negative one is padding, whose draw is unspecified.
        indexes, positions: int64 [D], as in :func:`sample`.
        temperature, top_k, top_p, min_p, seeds: [S], as in :func:`sample`.
        masked: -inf excludes a token; otherwise it is as much a failure as a NaN.
        out: where the results go; None: they get new memory.
    """
    rows = (logits if sources is None else logits[sources]).float()
    at = slots.clamp(min=0)
    tokens = sample(rows, temperature[at], top_k[at], top_p[at], min_p[at], seeds[at], indexes, positions)
    spoilt = rows.isnan() | rows.isposinf() if masked else ~rows.isfinite()
    failures = torch.where(rows.amax(-1) == -torch.inf, int(DrawFailure.NO_TOKEN_LEFT), int(DrawFailure.NONE))
    failures = torch.where(spoilt.any(-1), int(DrawFailure.NOT_FINITE), failures)
    drawn = Drawn(tokens, log_softmax_gather(rows, tokens), failures.int())
    if out is None:
        return drawn
    for target, source in zip(out, drawn, strict=True):
        target.copy_(source)
    return out


def log_softmax_gather(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of ``tokens`` int64 [B] under ``logits`` float32 [B, V]: float32 [B]."""
    picked = logits.gather(1, tokens[:, None])[:, 0]
    return picked - logits.logsumexp(-1)


def top_logprobs(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens of ``logits`` float32 [B, V]: ids int64 [B, k], likeliest first (of equals the lower id),
    and their log-probabilities float32 [B, k].

    Raises:
        ValueError: k is not between 1 and V.
    """
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k={k} must be between 1 and the vocabulary's {logits.shape[1]}")
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return ids[:, :k].contiguous(), values[:, :k] - logits.logsumexp(-1, keepdim=True)
