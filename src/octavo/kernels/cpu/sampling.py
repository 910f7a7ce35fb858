"""Drawing tokens, and their log-probabilities.

A draw is an arg-max of scaled logits plus Gumbel noise. What top_k, top_p and min_p leave is always a run of the
tokens in descending order of (logit, then ascending id), so it is given by its last member: a floor value, and the
last token id among those equal to it. The floor is found by selection, never by a sort of the vocabulary.
"""

from __future__ import annotations

import ctypes
import math

import torch

from octavo.kernels import noise
from octavo.kernels.cpu import checks
from octavo.kernels.cpu.draws import (
    GROUP,
    first_equal,
    group_largest,
    largest,
    largest_if_finite,
    perturbed_best,
    pick,
    shift_divide,
    weigh,
)
from octavo.kernels.cpu.elementwise import fill, widen
from octavo.kernels.cpu.emitter import F32
from octavo.kernels.cpu.jit import device, kernel
from octavo.kernels.cpu.launch import (
    ARGUMENTS,
    FIRST_ARGUMENT,
    NUM_TASKS,
    SCRATCH,
    SCRATCH_STRIDE,
    TASK,
    WORKER,
    num_threads,
    packer,
    run,
)
from octavo.kernels.cpu.tiles import exponential
from octavo.kernels.cpu.words import as_f32, fetch_add, finalize, load_f32, load_i32, load_i64, store_f32, store_i64

_PIECE = 8192
"""Logits of a piece, where a row is looked at by several threads: the nearest cache holds them."""

SMALL = 40_000
"""Logits that one thread looks at in some 20 microseconds: for fewer, others are not called."""

(LOGITS, STRIDE, VOCAB, TEMPERATURE, TOP_K, TOP_P, MIN_P, SEEDS, INDEXES, POSITIONS, TOKENS, VALUES, COUNT, TOTALS) = (
    range(FIRST_ARGUMENT, FIRST_ARGUMENT + 8 * 14, 8)
)
_pack = packer("14q")

GOLDEN = noise.GOLDEN - (1 << 64)
"""As a signed word."""


# ---------------------------------------------------------------- selection


@device
def split(values: int, weights: int, count: int, pivot: float) -> tuple[int, int]:
    """Move what is above ``pivot`` to the front, then what equals it; returns how many are above, and how many equal.
    ``weights`` move along where their address is not 0."""
    above, i, below = 0, 0, count
    while i < below:
        value = load_f32(values + 4 * i)
        if value == pivot:
            i += 1
            continue
        if value > pivot:
            other = above
            above += 1
            i += 1
            at = i - 1
        else:
            below -= 1
            other = below
            at = i
        store_f32(values + 4 * at, load_f32(values + 4 * other))
        store_f32(values + 4 * other, value)
        if weights != 0:
            weight = load_f32(weights + 4 * at)
            store_f32(weights + 4 * at, load_f32(weights + 4 * other))
            store_f32(weights + 4 * other, weight)
    return above, below - above


@device
def select(values: int, weights: int, count: int, wanted: float) -> tuple[float, int, int]:
    """The shortest run of ``values``, in descending order, whose weights (1 each where ``weights`` is 0) sum to
    ``wanted`` at least: its last value, how many equal to that are in the run, and how many there are. At least one
    value is in the run. Quickselect (Hoare, 1961): the row is reordered."""
    so_far = 0.0
    random = 1
    if count == 0:
        return as_f32(-math.inf), 0, 0
    while True:
        random = (random * 1103515245 + 12345) & 0x7FFFFFFF
        pivot = load_f32(values + 4 * ((random >> 8) % count))
        above, equal = split(values, weights, count, pivot)
        if weights == 0:
            upper, each = float(above), 1.0
        else:
            upper, each = 0.0, float(load_f32(weights + 4 * above))
            for i in range(above):
                upper += load_f32(weights + 4 * i)
        if above > 0 and so_far + upper >= wanted:
            count = above
            continue
        before = so_far + upper
        if before + each * equal >= wanted or above + equal == count:
            needed = 1
            while needed < equal and before + each * needed < wanted:
                needed += 1
            return pivot, needed, equal
        so_far = before + each * equal
        values += 4 * (above + equal)
        if weights != 0:
            weights += 4 * (above + equal)
        count -= above + equal


@device
def nth_token(x: int, count: int, value: float, n: int) -> int:
    """The id of the n-th token (from 1) whose x equals ``value``."""
    token = -1
    for _ in range(n):
        token += 1
        token += first_equal(x + 4 * token, count - token, value)
    return token


@device
def largest_run(x: int, vocab: int, k: int, memory: int) -> tuple[float, int, int, int]:
    """The k largest of x: the last value, how many equal to it are among them and how many there are, and the number
    of candidates left at ``memory``: all values not below it, and perhaps more."""
    groups = (vocab + GROUP - 1) // GROUP
    least = as_f32(-math.inf)
    if k <= groups:
        # k groups have a member no less than the k-th largest of the groups' best: few candidates pass
        group_largest(x, vocab, memory)
        least = as_f32(select(memory, 0, groups, float(k))[0])
    count = pick(x, vocab, least, memory)
    value, needed, equal = select(memory, 0, count, float(k))
    return value, needed, equal, count


@device
def floor_of(x: int, vocab: int, k: int, p: float, least_ratio: float, memory: int) -> tuple[float, int]:
    """The floor, and the last token id at the floor, that top_k, top_p and min_p leave of x (whose largest is 0)."""
    floor, needed, equal = -math.inf, 0, 0
    weights = memory + 4 * vocab
    if 0 < k < vocab:
        value, needed, equal, _ = largest_run(x, vocab, k, memory)
        floor = float(value)
    if p < 1.0:
        if floor > -math.inf:
            count = pick(x, vocab, as_f32(floor), memory)
            mass = weigh(memory, 0.0, weights, count)
            mass -= float(exponential(as_f32(floor))) * (equal - needed)
        else:
            mass = weigh(x, 0.0, 0, vocab)
            depth = -3.0
            while True:
                # most of the mass lies near the top: take deeper candidates only while it does not
                count = pick(x, vocab, as_f32(depth), memory)
                if weigh(memory, 0.0, weights, count) >= p * mass or depth == -math.inf:
                    break
                depth = depth * 2.0 if depth > -20.0 else -math.inf
        value, some, all_ = select(memory, weights, count, p * mass)
        if float(value) > floor or some < needed or needed == 0:
            floor, needed, equal = float(value), some, all_
    if least_ratio > 0.0:
        least = float(as_f32(math.log(least_ratio)))
        if least > floor:
            return min(least, 0.0), vocab - 1
    if needed < equal:
        return floor, nth_token(x, vocab, as_f32(floor), needed)
    return floor, vocab - 1


# ---------------------------------------------------------------- kernels


@kernel
def sample_rows(p: int) -> None:
    """Tasks are rows."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, vocab = load_i64(p + NUM_TASKS), load_i64(p + VOCAB)
    best, tail, x = memory, memory + 64, memory + 64 + 4 * GROUP
    candidates = x + 4 * vocab
    while True:
        row = fetch_add(p + TASK, 1)
        if row >= tasks:
            break
        logits = load_i64(p + LOGITS) + row * load_i64(p + STRIDE)
        top = largest(logits, vocab)
        temperature = load_f32(load_i64(p + TEMPERATURE) + 4 * row)
        if temperature == 0.0 or math.isinf(top):
            # (logits that are all excluded, or infinite, leave nothing to draw)
            token = first_equal(logits, vocab, top)
            store_i64(load_i64(p + TOKENS) + 8 * row, token if token < vocab else 0)
            continue
        floor, floor_token = -math.inf, vocab - 1
        k = load_i32(load_i64(p + TOP_K) + 4 * row)
        top_p = float(load_f32(load_i64(p + TOP_P) + 4 * row))
        min_p = float(load_f32(load_i64(p + MIN_P) + 4 * row))
        if 0 < k < vocab or top_p < 1.0 or min_p > 0.0:
            shift_divide(logits, top, temperature, x, vocab)
            floor, floor_token = floor_of(x, vocab, k, top_p, min_p, candidates)
        key = finalize(
            load_i64(load_i64(p + SEEDS) + 8 * row) ^ finalize(load_i64(load_i64(p + INDEXES) + 8 * row) + GOLDEN)
        )
        position = load_i64(load_i64(p + POSITIONS) + 8 * row)
        store_f32(best, as_f32(-math.inf))
        store_i64(best + 8, 0)
        groups = vocab // GROUP
        perturbed_best(logits, groups, 0, top, temperature, as_f32(floor), floor_token, key, position, best)
        rest = vocab - groups * GROUP
        if rest > 0:
            fill(tail, as_f32(-math.inf), GROUP)
            widen(F32, logits + 4 * groups * GROUP, tail, rest)
            perturbed_best(tail, 1, groups * GROUP, top, temperature, as_f32(floor), floor_token, key, position, best)
        store_i64(load_i64(p + TOKENS) + 8 * row, load_i64(best + 8))


@kernel
def best_tokens(p: int) -> None:
    """Tasks are (row, piece): the last of a row's pieces to be done finds the token. ``VALUES`` are a row's counter of
    64 bits, each; behind them lie the pieces' largest. ``COUNT`` is how many items a piece has."""
    tasks, vocab, piece = load_i64(p + NUM_TASKS), load_i64(p + VOCAB), load_i64(p + COUNT)
    pieces = (vocab + piece - 1) // piece
    rows = tasks // pieces
    while True:
        task = fetch_add(p + TASK, 1)
        if task >= tasks:
            break
        row = task // pieces
        number = task - row * pieces
        logits = load_i64(p + LOGITS) + row * load_i64(p + STRIDE)
        counter = load_i64(p + VALUES) + 8 * row
        tops = load_i64(p + VALUES) + 8 * rows + 4 * row * pieces
        start = number * piece
        store_f32(tops + 4 * number, largest_if_finite(logits + 4 * start, min(piece, vocab - start)))
        if fetch_add(counter, 1) != pieces - 1:
            continue
        token = -1
        top = largest_if_finite(tops, pieces)
        if not math.isnan(top):
            start = first_equal(tops, pieces, top) * piece
            token = start + first_equal(logits + 4 * start, min(piece, vocab - start), top)
        store_i64(load_i64(p + TOKENS) + 8 * row, token)


@kernel
def gather_logprobs(p: int) -> None:
    """Tasks are rows: the log-probability of the row's token."""
    tasks, vocab = load_i64(p + NUM_TASKS), load_i64(p + VOCAB)
    while True:
        row = fetch_add(p + TASK, 1)
        if row >= tasks:
            break
        logits = load_i64(p + LOGITS) + row * load_i64(p + STRIDE)
        top = largest(logits, vocab)
        total = math.log(weigh(logits, top, 0, vocab))
        token = load_i64(load_i64(p + TOKENS) + 8 * row)
        picked = load_f32(logits + 4 * token) if 0 <= token < vocab else as_f32(math.nan)
        store_f32(load_i64(p + VALUES) + 4 * row, as_f32(float(picked) - float(top) - total))


@kernel
def likeliest(p: int) -> None:
    """Tasks are rows: the ids of the row's k largest logits, ascending, and those logits; and the row's log-sum-exp."""
    memory = load_i64(p + SCRATCH) + fetch_add(p + WORKER, 1) * load_i64(p + SCRATCH_STRIDE)
    tasks, vocab, k = load_i64(p + NUM_TASKS), load_i64(p + VOCAB), load_i64(p + COUNT)
    while True:
        row = fetch_add(p + TASK, 1)
        if row >= tasks:
            break
        logits = load_i64(p + LOGITS) + row * load_i64(p + STRIDE)
        top = largest(logits, vocab)
        total = float(top) + math.log(weigh(logits, top, 0, vocab))
        store_f32(load_i64(p + TOTALS) + 4 * row, as_f32(total))
        least, ties, _, _ = largest_run(logits, vocab, k, memory)
        tokens, values = load_i64(p + TOKENS) + 8 * k * row, load_i64(p + VALUES) + 4 * k * row
        found = 0
        for token in range(vocab):
            value = load_f32(logits + 4 * token)
            if value < least or (value == least and ties == 0) or found == k:
                continue
            if value == least:
                ties -= 1
            store_i64(tokens + 8 * found, token)
            store_f32(values + 4 * found, value)
            found += 1
        for place in range(found, k):
            # NaN took the others' places
            store_i64(tokens + 8 * place, 0)
            store_f32(values + 4 * place, as_f32(math.nan))


# ---------------------------------------------------------------- entries


def _rows(logits: torch.Tensor) -> checks.Rows:
    rows = checks.matrix("logits", logits)
    if rows[0] != F32 or rows[2] < 1:
        raise ValueError(f"logits are {tuple(logits.shape)} of {logits.dtype}: they must be float32 [B, V]")
    return rows


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
    """One token for each row of ``logits``, int64 [B]: the arg-max of scaled logits plus Gumbel noise over what top_k,
    top_p and min_p leave, or the plain arg-max (first of equals) where temperature is 0.

    Args:
        logits: float32 [B, V]; -inf excludes a token. What is drawn from a row with NaN or +inf is unspecified.
        temperature: float32 [B], 0 is greedy.
        top_k: int32 [B], 0 keeps all.
        top_p: float32 [B], 1 keeps all. Of the tokens top_k left, renormalised, the shortest run in descending order
            whose probabilities reach p is kept, one token at least; of equals the lower ids come first.
        min_p: float32 [B], 0 keeps all.
        seeds: int64 [B], 64-bit words held as int64.
        indexes: int64 [B], the sequence's noise index.
        positions: int64 [B], the position the token will stand at.

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    _, rows, vocab, row_stride, address = _rows(logits)
    arguments = ARGUMENTS.here
    tokens = torch.empty(rows, dtype=torch.int64)
    threads = num_threads() if rows > 1 and rows * vocab > SMALL else 1
    stride = 64 + 4 * GROUP + 12 * vocab + 256 & -64
    _pack(
        arguments.words,
        0,
        0,
        0,
        rows,
        arguments.scratch(threads * stride),
        stride,
        address,
        row_stride,
        vocab,
        checks.vector("temperature", temperature, torch.float32, rows),
        checks.vector("top_k", top_k, torch.int32, rows),
        checks.vector("top_p", top_p, torch.float32, rows),
        checks.vector("min_p", min_p, torch.float32, rows),
        checks.vector("seeds", seeds, torch.int64, rows),
        checks.vector("indexes", indexes, torch.int64, rows),
        checks.vector("positions", positions, torch.int64, rows),
        tokens.data_ptr(),
        0,
        0,
        0,
    )
    run(sample_rows, threads, arguments)
    return tokens


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row of ``logits`` float32 [B, V], of equals the first: int64 [B]; -1 for a row that
    holds a NaN or an infinity.

    Raises:
        ValueError: logits are not as described.
    """
    _, rows, vocab, row_stride, address = _rows(logits)
    arguments = ARGUMENTS.here
    tokens = torch.empty(rows, dtype=torch.int64)
    threads = num_threads() if rows * vocab > SMALL // 2 else 1
    pieces = 1 if threads == 1 or rows >= 4 * threads else -(-vocab // _PIECE)
    piece = max(1, -(-vocab // pieces))
    memory = arguments.scratch(rows * (8 + 4 * pieces))
    ctypes.memset(memory, 0, 8 * rows)
    _pack(
        arguments.words, 0, 0, 0, rows * -(-vocab // piece), 0, 0, address, row_stride, vocab,
        0, 0, 0, 0, 0, 0, 0, tokens.data_ptr(), memory, piece, 0,
    )  # fmt: skip
    run(best_tokens, threads, arguments)
    return tokens


def log_softmax_gather(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of ``tokens`` int64 [B] under ``logits`` float32 [B, V]: float32 [B]; NaN for a token outside
    [0, V).

    Raises:
        ValueError: a tensor's shape, dtype or layout is not as described.
    """
    _, rows, vocab, row_stride, address = _rows(logits)
    arguments = ARGUMENTS.here
    values = torch.empty(rows)
    tokens_address = checks.vector("tokens", tokens, torch.int64, rows)
    _pack(
        arguments.words, 0, 0, 0, rows, 0, 0, address, row_stride, vocab,
        0, 0, 0, 0, 0, 0, 0, tokens_address, values.data_ptr(), 0, 0,
    )  # fmt: skip
    run(gather_logprobs, num_threads() if rows * vocab > SMALL else 1, arguments)
    return values


def top_logprobs(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k likeliest tokens of ``logits`` float32 [B, V]: ids int64 [B, k], likeliest first (of equals the lower id),
    and their log-probabilities float32 [B, k].

    Raises:
        ValueError: k is not between 1 and V, or logits are not as described.
    """
    _, rows, vocab, row_stride, address = _rows(logits)
    arguments = ARGUMENTS.here
    if not 1 <= k <= vocab:
        raise ValueError(f"k={k} must be between 1 and the vocabulary's {vocab}")
    tokens, values, totals = torch.empty(rows, k, dtype=torch.int64), torch.empty(rows, k), torch.empty(rows)
    threads = num_threads() if rows * vocab > SMALL else 1
    stride = 4 * vocab + 256 & -64
    _pack(
        arguments.words, 0, 0, 0, rows, arguments.scratch(threads * stride), stride, address,
        row_stride, vocab, 0, 0, 0, 0, 0, 0, 0, tokens.data_ptr(), values.data_ptr(), k,
        totals.data_ptr(),
    )  # fmt: skip
    run(likeliest, threads, arguments)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return tokens.gather(1, order), values - totals[:, None]
