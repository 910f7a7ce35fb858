"""Train the small story model that ships with Octavo, from a plain-text corpus of fairy tales.

One command goes from text to a Hugging Face folder: it splits the corpus into passages, holds some out, trains a
byte-level BPE tokenizer and a Llama-architecture model, exports both with a model card, and measures bits per byte
on the held-out passages with the exported bfloat16 weights::

    python tools/train_tales.py --corpus fairy-tales.txt.gz --out src/octavo/models/tales --minutes 70

The budget is training time, not steps: the learning rate warms up, stays, and decays to zero over the last part of
``--minutes``. Time in which the process was paused does not count. With ``--checkpoint`` an interrupted run goes on
where it was; running it again with fewer minutes brings the decay forward, and with no more minutes than were
already spent exports at once. ``--evaluate FOLDER`` measures a folder and trains nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import math
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

END_OF_TEXT = "<|endoftext|>"
SAMPLING = {"temperature": 0.8, "top_p": 0.95}
PARAGRAPH = "\n\n"
console = Console()


# --------------------------------------------------------------------------------------------------------------
# Corpus
# --------------------------------------------------------------------------------------------------------------

#: Paragraphs that speak of the electronic edition, not of any tale.
BOILERPLATE = re.compile(r"Project Gutenberg|Produced by|HTML version|[Ee]-?text|www\.|important information in this")

#: How tales open. The corpus has lost its headings, so an opening formula is all that tells where one tale ends.
OPENING = re.compile(
    r"(Once upon a time|Once on a time|Once there |Once, |Once when |Once (was|lived|it) |There (was|were|lived) once"
    r"|There once |(Very )?(L|l)ong,? (, )?(long )?ago|Many(, many)? years ago|Many, many |A (very )?long time ago"
    r"|A great (many|while|long)|In (the )?(olden|old|ancient|former) (times|days)|In days (of|long)|Ages ago"
    r"|A certain (king|man|queen|merchant|woman|father|rich|poor)|In a certain |There (was|lived) an? |Some time ago"
    r"|A (poor|rich|king|man|woman|farmer|peasant|merchant|widow|tailor|miller|soldier|hunter|shepherd|cat|fox)\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Passage:
    """A whole tale, or a few pages of a book too long to be one."""

    text: str
    opens: bool  # a new tale begins here, so an end-of-text token stands before it


def read_text(path: Path) -> str:
    """The text of a plain or gzipped file."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8")


def split_passages(text: str, shortest: int = 1_500, longest: int = 24_000) -> list[Passage]:
    """Cut the corpus at book ends, at paragraphs that open like a tale, and after ``longest`` characters."""
    passages: list[Passage] = []
    for book in re.split(r"\n{3,}", text):
        current: list[str] = []
        size, opens = 0, True
        for paragraph in filter(None, (part.strip() for part in book.split(PARAGRAPH))):
            if BOILERPLATE.search(paragraph):
                continue
            new_tale = size >= shortest and OPENING.match(paragraph) is not None
            if new_tale or size >= longest:
                passages.append(Passage(PARAGRAPH.join(current), opens))
                current, size, opens = [], 0, new_tale
            current.append(paragraph)
            size += len(paragraph) + len(PARAGRAPH)
        if current:
            passages.append(Passage(PARAGRAPH.join(current), opens))
    return passages


def shingles(text: str, words: int = 8) -> set[int]:
    """Hashes of every run of ``words`` words, whatever their case and punctuation."""
    tokens = re.findall(r"[a-z0-9]+", text.lower())
    return {hash(tuple(tokens[i : i + words])) for i in range(len(tokens) - words + 1)}


def detach(passages: Sequence[Passage], kept: Sequence[bool]) -> list[Passage]:
    """The kept passages; one that follows a gap opens a document of its own."""
    chosen: list[Passage] = []
    for index, passage in enumerate(passages):
        if kept[index]:
            follows_gap = index > 0 and not kept[index - 1]
            chosen.append(Passage(passage.text, passage.opens or follows_gap))
    return chosen


def hold_out(
    passages: Sequence[Passage], fraction: float = 0.03, spans: int = 16, overlap: float = 0.05
) -> tuple[list[Passage], list[Passage], int]:
    """Split into training and held-out passages, and say how many near-duplicates were dropped from the former.

    The held-out part is ``spans`` runs of consecutive passages at even distances through the corpus, so that it
    meets every book's style in proportion. A training passage that shares more than ``overlap`` of its eight-word
    runs with the held-out text (the same tale printed in two books) is dropped.
    """
    total = sum(len(passage.text) for passage in passages)
    starts = [(0.5 + span) * total / spans for span in range(spans)]
    held = [False] * len(passages)
    position, span, taken = 0, 0, 0.0
    for index, passage in enumerate(passages):
        if span < spans and position >= starts[span]:
            held[index] = True
            taken += len(passage.text)
            if taken >= fraction * total / spans:
                span, taken = span + 1, 0.0
        position += len(passage.text)
    seen: set[int] = set()
    for passage, is_held in zip(passages, held, strict=True):
        if is_held:
            seen |= shingles(passage.text)
    trained = [not is_held for is_held in held]
    dropped = 0
    for index, passage in enumerate(passages):
        if trained[index]:
            own = shingles(passage.text)
            if own and len(own & seen) > overlap * len(own):
                trained[index] = False
                dropped += 1
    return detach(passages, trained), detach(passages, held), dropped


# --------------------------------------------------------------------------------------------------------------
# Tokenizer
# --------------------------------------------------------------------------------------------------------------


def train_tokenizer(passages: Sequence[Passage], entries: int) -> Tokenizer:
    """A byte-level BPE tokenizer: it encodes any text, and decoding gives the same bytes back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((passage.text for passage in passages), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A",
        pair=f"{END_OF_TEXT} $A {END_OF_TEXT} $B",
        special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))],
    )
    return tokenizer


def encode_stream(tokenizer: Tokenizer, passages: Sequence[Passage]) -> tuple[Tensor, int]:
    """All passages as one run of tokens, tales parted by end-of-text, and the bytes of text it stands for."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    opens = [passage.opens or index == 0 for index, passage in enumerate(passages)]
    texts = [passage.text if new else PARAGRAPH + passage.text for passage, new in zip(passages, opens, strict=True)]
    ids: list[int] = []
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for new, encoding in zip(opens, encodings, strict=True):
        ids.extend([end, *encoding.ids] if new else encoding.ids)
    ids.append(end)
    return torch.tensor(ids, dtype=torch.int32), sum(len(text.encode()) for text in texts)


# --------------------------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelSize:
    """The shape of the model, in the words of a Hugging Face Llama config."""

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int = 896
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ModelSize:
        """Read the shape back from an exported config.json."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


def linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """Several projections of the same input as one matrix product, in the input's precision."""
    weight = layers[0].weight if len(layers) == 1 else torch.cat([layer.weight for layer in layers])
    return F.linear(x, weight.to(x.dtype))


class Norm(nn.Module):
    """Root-mean-square norm, computed in float32."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size.hidden_size))
        self.eps = size.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        """Scale each vector to unit mean square, then by the weights."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (scaled * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions; query heads share key-value heads in groups."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.size = size
        width, kv_width = size.num_attention_heads * size.head_dim, size.num_key_value_heads * size.head_dim
        self.q_proj = nn.Linear(size.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(size.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, size.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Let every position take from those before it."""
        batch, length, _ = x.shape
        heads, kv_heads = self.size.num_attention_heads, self.size.num_key_value_heads
        projected = linear(x, self.q_proj, self.k_proj, self.v_proj)
        projected = projected.view(batch, length, heads + 2 * kv_heads, self.size.head_dim).transpose(1, 2)
        rotated, value = projected.split([heads + kv_heads, kv_heads], dim=1)
        left, right = rotated.chunk(2, dim=-1)
        rotated = rotated * cos + torch.cat([-right, left], dim=-1) * sin
        query, key = rotated.split([heads, kv_heads], dim=1)
        key = key.repeat_interleave(heads // kv_heads, dim=1)
        value = value.repeat_interleave(heads // kv_heads, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return linear(mixed.transpose(1, 2).reshape(batch, length, -1), self.o_proj)


class FeedForward(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.up_proj = nn.Linear(size.hidden_size, size.intermediate_size, bias=False)
        self.down_proj = nn.Linear(size.intermediate_size, size.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """SwiGLU."""
        gate, up = linear(x, self.gate_proj, self.up_proj).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, self.down_proj)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.input_layernorm = Norm(size)
        self.self_attn = Attention(size)
        self.post_attention_layernorm = Norm(size)
        self.mlp = FeedForward(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, drop: Drop | None, index: int) -> Tensor:
        """The stream after this layer."""
        mixed = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + (drop(mixed, 2 * index + 1) if drop else mixed)
        fed = self.mlp(self.post_attention_layernorm(x))
        return x + (drop(fed, 2 * index + 2) if drop else fed)


class Drop:
    """Dropout from bytes drawn beforehand: on a CPU far cheaper than a Bernoulli draw for each element."""

    def __init__(self, noise: Tensor, rate: float) -> None:
        self.noise = noise  # [places, batch, length, hidden], uint8
        self.threshold = round(rate * 256)

    def __call__(self, x: Tensor, place: int) -> Tensor:
        """Drop elements of ``x`` where the noise of this place is low, and scale up the rest."""
        keep = (self.noise[place] >= self.threshold).to(x.dtype)
        return x * keep * (256 / (256 - self.threshold))


def draw_noise(size: ModelSize, batch: int, length: int, device: torch.device) -> Tensor:
    """Uniform bytes for every dropout place of one pass (the embedding, and two in each layer)."""
    shape = (2 * size.num_hidden_layers + 1, batch, length, size.hidden_size)
    words = torch.randint(-(2**63), 2**63 - 1, (math.prod(shape) // 8,), dtype=torch.int64, device=device)
    return words.view(torch.uint8).view(shape)


class TalesModel(nn.Module):
    """A Llama decoder whose parameter names are those of the Hugging Face checkpoint, without the ``model.``."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: ModelSize) -> None:
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocab_size, size.hidden_size)
        self.layers = nn.ModuleList(Layer(size) for _ in range(size.num_hidden_layers))
        self.norm = Norm(size)
        exponents = torch.arange(0, size.head_dim, 2).float() / size.head_dim
        angles = torch.outer(torch.arange(size.max_position_embeddings).float(), size.rope_theta**-exponents)
        angles = torch.cat([angles, angles], dim=-1)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def initialise(self) -> None:
        """Normal weights; the projections that write to the stream begin at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor, precision: torch.dtype = torch.float32, drop: Drop | None = None) -> Tensor:
        """The logits that follow each token."""
        x = self.embed_tokens(ids).to(precision)
        if drop:
            x = drop(x, 0)
        cos, sin = self.cos[: ids.shape[1]].to(precision), self.sin[: ids.shape[1]].to(precision)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, drop, index)
        return F.linear(self.norm(x), self.embed_tokens.weight.to(precision))

    def loss(self, window: Tensor, precision: torch.dtype, noise: Tensor | None = None, rate: float = 0.0) -> Tensor:
        """Mean loss in nats of predicting each token of ``window`` [batch, length + 1] from those before it."""
        logits = self(window[:, :-1], precision, None if noise is None else Drop(noise, rate))
        return F.cross_entropy(logits.flatten(0, 1).float(), window[:, 1:].flatten())


# --------------------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    minutes: float = 70.0
    batch_tokens: int = 8192
    sequence: int = 512  # until the decay begins; from then on the model's whole context
    matrix_lr: float = 5e-3
    other_lr: float = 3e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    warmup: float = 0.01  # share of the budget
    decay: float = 0.4
    seed: int = 1


@dataclass
class State:
    """What a run has done so far, as far as the model card tells."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    pass_number: int = 0  # how often the text has been read
    pass_windows: int = 0  # windows read since the pass began
    pass_length: int = 0  # the window length of this pass
    losses: list[float] = field(default_factory=list)  # the last hundred


def rate_factor(progress: float, warmup: float, decay: float) -> float:
    """Warmup, plateau and linear decay to zero, over a progress from 0 to 1."""
    if progress < warmup:
        return max(progress, 0.02 * warmup) / warmup
    return min(1.0, max(0.0, (1.0 - progress) / decay))


def pass_starts(tokens: int, length: int, pass_number: int, seed: int) -> list[int]:
    """Where the windows of one pass over the text begin: shifted and shuffled anew for every pass."""
    draw = random.Random(seed * 1_000_003 + pass_number)
    starts = list(range(draw.randrange(length), tokens - length, length))
    draw.shuffle(starts)
    return starts


def batches(stream: Tensor, recipe: Recipe, state: State, context: int) -> Iterator[Tensor]:
    """Endless batches of windows [batch, length + 1], beginning where ``state`` stopped."""
    while True:
        in_decay = state.seconds >= (1 - recipe.decay) * recipe.minutes * 60
        length = min(context if in_decay else recipe.sequence, len(stream) - 2)
        rows = max(1, recipe.batch_tokens // length)
        if length != state.pass_length:
            state.pass_number, state.pass_windows, state.pass_length = state.pass_number + 1, 0, length
        starts = pass_starts(len(stream), length, state.pass_number, recipe.seed)
        chosen = starts[state.pass_windows : state.pass_windows + rows]
        if len(chosen) < min(rows, len(starts)):
            state.pass_number, state.pass_windows = state.pass_number + 1, 0
            continue
        state.pass_windows += len(chosen)
        yield torch.stack([stream[start : start + length + 1] for start in chosen]).long()


def make_optimisers(model: TalesModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [parameter for parameter in model.layers.parameters() if parameter.ndim == 2]
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    groups = [
        {"params": [model.embed_tokens.weight], "weight_decay": recipe.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=recipe.other_lr, betas=(0.9, 0.98))
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["full_lr"] = group["lr"]
    return [muon, adam]


class Clock:
    """Seconds of training in which the process really ran: a step that took far too long was paused."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.usual: float | None = None

    def tick(self) -> float:
        """Seconds to count for the step that ends now."""
        now = time.perf_counter()
        spent, self.last = now - self.last, now
        if self.usual is None:  # the first step compiles
            self.usual = max(spent, 10.0)
        counted = min(spent, 10 * self.usual)
        self.usual = 0.9 * self.usual + 0.1 * counted
        return counted


class Trainer:
    """One training run: the model, its optimisers, where it is in the data, and how to save and resume it."""

    def __init__(
        self, model: TalesModel, stream: Tensor, recipe: Recipe, device: torch.device, compiled: bool = True
    ) -> None:
        self.model, self.recipe, self.device = model.to(device), recipe, device
        self.stream = stream
        self.state = State()
        self.optimisers = make_optimisers(model, recipe)
        self.loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss
        self.stopped = False

    def step(self, window: Tensor, factor: float) -> Tensor:
        """One step of both optimisers; returns the loss in nats a token."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_lr"] * factor
        noise = None
        if self.recipe.dropout > 0:
            noise = draw_noise(self.model.size, window.shape[0], window.shape[1] - 1, self.device)
        loss = self.loss(window.to(self.device), torch.bfloat16, noise, self.recipe.dropout)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.detach()

    def run(self, checkpoint: Path | None = None, every: float = 240.0) -> None:
        """Train until the budget is spent or the process is asked to stop; save as it goes."""
        budget, state = self.recipe.minutes * 60, self.state
        data = batches(self.stream, self.recipe, state, self.model.size.max_position_embeddings)
        clock, saved, begun, counted = Clock(), state.seconds, state.tokens, state.seconds
        with stop_on_signal(self), progress_bar() as bar:
            task = bar.add_task("training", total=budget, completed=state.seconds, loss=0.0, lr=0.0, speed=0, epoch=0.0)
            while state.seconds < budget and not self.stopped:
                factor = rate_factor(state.seconds / budget, self.recipe.warmup, self.recipe.decay)
                window = next(data)
                loss = self.step(window, factor).item()
                state.step, state.tokens = state.step + 1, state.tokens + window[:, 1:].numel()
                state.seconds += clock.tick()
                state.losses = [*state.losses[-99:], loss]
                bar.update(
                    task,
                    completed=min(state.seconds, budget),
                    loss=sum(state.losses) / len(state.losses),
                    lr=self.recipe.matrix_lr * factor,
                    speed=(state.tokens - begun) / max(state.seconds - counted, 1e-9),
                    epoch=state.tokens / len(self.stream),
                )
                if state.seconds - saved > every:
                    saved = state.seconds
                    if checkpoint:
                        self.save(checkpoint)
                    if not console.is_terminal:
                        console.print(bar.get_renderable())
        if checkpoint:
            self.save(checkpoint)

    def save(self, path: Path) -> None:
        """Write everything needed to go on, replacing the file at once so that no half of it is ever left."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        contents = {
            "size": asdict(self.model.size),
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "random": torch.get_rng_state(),
        }
        torch.save(contents, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a saved run; learning rates and the budget are the new run's."""
        contents = torch.load(path, map_location=self.device, weights_only=True)
        if contents["size"] != asdict(self.model.size):
            raise SystemExit(f"{path} holds a model of another shape: {contents['size']}")
        self.state = State(**contents["state"])
        self.model.load_state_dict(contents["model"])
        for optimiser, saved in zip(self.optimisers, contents["optimisers"], strict=True):
            settings = [
                {key: value for key, value in group.items() if key != "params"} for group in optimiser.param_groups
            ]
            optimiser.load_state_dict(saved)
            for group, values in zip(optimiser.param_groups, settings, strict=True):
                group.update(values)
        torch.set_rng_state(contents["random"].cpu())


@contextlib.contextmanager
def stop_on_signal(trainer: Trainer) -> Iterator[None]:
    """Finish the step and save when interrupted or terminated."""

    def stop(*_: object) -> None:
        trainer.stopped = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress_bar() -> Progress:
    """A bar over the time budget, with loss, learning rate and speed."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.1f}%"),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("lr {task.fields[lr]:.1e}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TextColumn("epoch {task.fields[epoch]:.2f}"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=1,
    )


# --------------------------------------------------------------------------------------------------------------
# Evaluation
# --------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def bits_per_byte(model: TalesModel, stream: Tensor, text_bytes: int, rows: int = 8) -> float:
    """Bits per byte of the text behind ``stream``, with a sliding context that moves by half its length.

    Every token but the first is predicted exactly once; past the first window, from at least half a context. The
    end-of-text tokens are predicted and paid for too, though they stand for no byte.
    """
    device = model.embed_tokens.weight.device
    context = min(model.size.max_position_embeddings, len(stream) - 1)
    stride = max(1, context // 2)
    spans: list[tuple[int, int]] = []  # where a window begins, and the first of its targets that counts
    done = 0
    while done < len(stream) - 1:
        begin = min(max(0, done - (context - stride)), len(stream) - 1 - context)
        spans.append((begin, done - begin))
        done = begin + context
    total = 0.0
    for first in range(0, len(spans), rows):
        some = spans[first : first + rows]
        window = torch.stack([stream[begin : begin + context + 1] for begin, _ in some]).long().to(device)
        logits = model(window[:, :-1]).float()
        losses = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none").view(len(some), -1)
        total += sum(float(losses[row, skip:].double().sum()) for row, (_, skip) in enumerate(some))
    return total / math.log(2) / text_bytes


def load_folder(folder: Path, device: torch.device) -> tuple[TalesModel, Tokenizer]:
    """An exported model, its bfloat16 weights widened to float32 for exact arithmetic, and its tokenizer."""
    size = ModelSize.from_config(json.loads((folder / "config.json").read_text()))
    model = TalesModel(size)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight.float() for name, weight in weights.items()})
    return model.eval().to(device), Tokenizer.from_file(str(folder / "tokenizer.json"))


@torch.inference_mode()
def tell(model: TalesModel, tokenizer: Tokenizer, opening: str, tokens: int) -> str:
    """A story that begins with ``opening``, sampled as generation_config.json advises."""
    device = model.embed_tokens.weight.device
    end = tokenizer.token_to_id(END_OF_TEXT)
    ids = tokenizer.encode(opening).ids
    for _ in range(tokens):
        logits = model(torch.tensor([ids[-model.size.max_position_embeddings :]], device=device))[0, -1]
        likely, order = (logits / SAMPLING["temperature"]).softmax(-1).sort(descending=True)
        likely[likely.cumsum(-1) - likely > SAMPLING["top_p"]] = 0
        token = int(order[torch.multinomial(likely, 1)])
        if token == end:
            break
        ids.append(token)
    return tokenizer.decode(ids, skip_special_tokens=True)


# --------------------------------------------------------------------------------------------------------------
# Export
# --------------------------------------------------------------------------------------------------------------

#: The prompts of the samples in the model card.
OPENINGS = ("Once upon a time", "There was once a fox who", "In the middle of the forest")

#: A chat is one story: the user opens it, the model goes on, and each later message begins a new paragraph.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}"
    "{%- if not loop.first and messages[loop.index0 - 1]['role'] != 'system' %}{{- '\\n\\n' }}{%- endif %}"
    "{{- message['content'] | trim }}"
    "{%- elif message['role'] == 'assistant' %}"
    "{{- message['content'] }}"
    "{%- endif %}"
    "{%- endfor %}"
)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON."""
    path.write_text(json.dumps(value, indent=2) + "\n")


def export(model: TalesModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model and its tokenizer as a Hugging Face folder, the weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    end = tokenizer.token_to_id(END_OF_TEXT)
    size = asdict(model.size)
    theta = size["rope_theta"]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **size,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": None,
        "torch_dtype": "bfloat16",
    }
    write_json(folder / "config.json", config)
    generation = {"bos_token_id": end, "eos_token_id": end, "do_sample": True, **SAMPLING}
    write_json(folder / "generation_config.json", generation)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokens,
        "model_max_length": model.size.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", tokens)
    weights = {f"model.{name}": weight.detach().cpu().bfloat16() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


@dataclass(frozen=True)
class Facts:
    """What the model card tells."""

    size: ModelSize
    parameters: int
    state: State
    recipe: Recipe
    hardware: str
    training_bytes: int
    training_tokens: int
    held_out_bytes: int
    held_out_tokens: int
    dropped: int
    bits: float
    samples: Sequence[str]


def model_card(facts: Facts) -> str:
    """The README.md of the exported folder."""
    size, state, recipe = facts.size, facts.state, facts.recipe
    epochs = state.tokens / facts.training_tokens
    prompts = ", ".join(f'"{opening}"' for opening in OPENINGS)
    samples = "\n\n<!-- -->\n\n".join("> " + sample.replace("\n", "\n> ") for sample in facts.samples)
    front_matter = "language: en\nlicense: cc0-1.0\nlibrary_name: transformers\npipeline_tag: text-generation"
    return f"""---
{front_matter}
---

# Tales

A {facts.parameters / 1e6:.1f} million parameter Llama model that tells fairy tales. It ships inside Octavo so that
everything can be tried offline; it knows nothing else, follows no instructions, and its plots wander.

| | |
|---|---|
| held-out bits per byte | **{facts.bits:.3f}** |
| parameters | {facts.parameters:,} (embeddings tied) |
| shape | hidden {size.hidden_size}, {size.num_hidden_layers} layers, {size.num_attention_heads} query heads over \
{size.num_key_value_heads} key-value heads of {size.head_dim}, feed-forward {size.intermediate_size} |
| context | {size.max_position_embeddings} tokens |
| tokenizer | byte-level BPE, {size.vocab_size:,} entries; `{END_OF_TEXT}` begins and ends a tale |
| weights | bfloat16 |
| licence | CC0 1.0 (public domain) |

## Training data

English fairy tales from public-domain books of Project Gutenberg: {facts.training_bytes:,} bytes,
{facts.training_tokens:,} tokens. {facts.held_out_bytes:,} bytes in 16 contiguous spans, spread evenly over the
books, were held out of both tokenizer and model training. Headings are missing from the corpus, so tales are told
apart by their opening formulas ("Once upon a time"), and a long book is cut into passages.

{facts.dropped} training passages that share more than 5% of their eight-word runs with the held-out text (the same
tale printed in two books) were dropped. What remains is not wholly foreign to the model: another translation of a
held-out tale, or another chapter of the same book, may be in the training text.

## Training

{state.seconds / 60:.0f} minutes on {facts.hardware}, in bfloat16 with float32 master weights: {state.tokens:,} tokens
in {state.step:,} steps of about {recipe.batch_tokens:,} tokens, {epochs:.1f} passes over the text. Muon (learning rate
{recipe.matrix_lr:g}) for the matrices, AdamW ({recipe.other_lr:g}) for the embedding and norms, weight decay
{recipe.weight_decay:g}, dropout {recipe.dropout:g}; warmup, plateau, and a linear decay to zero over the last
{recipe.decay:.0%} of the time. Sequences of {recipe.sequence} tokens, and of {size.max_position_embeddings} during the
decay. Seed {recipe.seed}. The last mean training loss (with dropout) was
{sum(state.losses) / max(1, len(state.losses)):.3f} nats a token.

## Evaluation

{facts.bits:.4f} bits per byte: the negative log-likelihood of the held-out text ({facts.held_out_tokens:,} tokens) in
bits, over its bytes, measured by `tools/train_tales.py` with the exported bfloat16 weights and a context of
{size.max_position_embeddings} tokens that slides by half its length.

## Samples

At temperature {SAMPLING["temperature"]:g} and top-p {SAMPLING["top_p"]:g}, as they came; the prompts were
{prompts}.

{samples}
"""


# --------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------


def describe_hardware(device: torch.device) -> str:
    """The machine in a few words, for the model card."""
    if device.type == "cuda":
        return f"one {torch.cuda.get_device_name(device)}"
    amx = " with AMX" if has_amx() else ""
    return f"a {torch.get_num_threads()}-core CPU{amx}"


def has_amx() -> bool:
    """Whether the processor multiplies bfloat16 tiles (AMX)."""
    flags = Path("/proc/cpuinfo")
    return flags.exists() and "amx_bf16" in flags.read_text()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a shape or recipe field is an option of the same name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True, help="the tales, plain text or gzip")
    parser.add_argument("--out", type=Path, help="folder to export to")
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="measure this exported folder and stop")
    parser.add_argument("--checkpoint", type=Path, help="file to save to and to resume from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--hardware", help="the machine in words, for the model card (default: looked up)")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler needed)")
    for group in (ModelSize, Recipe):
        defaults = group()
        for name in group.__dataclass_fields__:
            value = getattr(defaults, name)
            option = "--" + name.replace("_", "-")
            parser.add_argument(option, type=type(value), default=value, help=f"default {value:g}")
    options = parser.parse_args(arguments)
    if not (options.out or options.evaluate):
        parser.error("give --out to train or --evaluate to measure")
    return options


def pick(kind: type[Any], options: argparse.Namespace) -> Any:
    """The dataclass ``kind`` filled from the options of the same names."""
    return kind(**{name: getattr(options, name) for name in kind.__dataclass_fields__})


def measure(folder: Path, held_out: Sequence[Passage], device: torch.device) -> tuple[float, Tensor, int]:
    """Held-out bits per byte of an exported folder, with the tokens and bytes they were measured on."""
    model, tokenizer = load_folder(folder, device)
    stream, text_bytes = encode_stream(tokenizer, held_out)
    return bits_per_byte(model, stream, text_bytes), stream, text_bytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, measure and write the card; or only measure."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    passages = split_passages(read_text(options.corpus))
    training, held_out, dropped = hold_out(passages)
    if options.evaluate:
        bits, stream, text_bytes = measure(options.evaluate, held_out, device)
        console.print(f"{bits:.4f} bits per byte on {text_bytes:,} held-out bytes ({len(stream):,} tokens)")
        return

    size, recipe = pick(ModelSize, options), pick(Recipe, options)
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer(training, size.vocab_size)
    stream, training_bytes = encode_stream(tokenizer, training)
    model = TalesModel(size)
    model.initialise()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(
        f"{len(training)} passages, {training_bytes:,} bytes, {len(stream):,} tokens to train on; "
        f"{len(held_out)} passages held out, {dropped} near-duplicates dropped; {parameters:,} parameters"
    )
    trainer = Trainer(model, stream, recipe, device, compiled=not options.no_compile)
    if options.checkpoint and options.checkpoint.exists():
        trainer.resume(options.checkpoint)
        console.print(f"resuming at step {trainer.state.step:,}, after {trainer.state.seconds / 60:.1f} minutes")
    trainer.run(options.checkpoint)
    if trainer.stopped:
        console.print("stopped; the same command goes on from the checkpoint" if options.checkpoint else "stopped")
        return

    export(model, tokenizer, options.out)
    bits, held_stream, held_bytes = measure(options.out, held_out, device)
    console.print(f"{bits:.4f} bits per byte on {held_bytes:,} held-out bytes ({len(held_stream):,} tokens)")
    exported, _ = load_folder(options.out, device)
    facts = Facts(
        size=size,
        parameters=parameters,
        state=trainer.state,
        recipe=recipe,
        hardware=options.hardware or describe_hardware(device),
        training_bytes=training_bytes,
        training_tokens=len(stream),
        held_out_bytes=held_bytes,
        held_out_tokens=len(held_stream),
        dropped=dropped,
        bits=bits,
        samples=[tell(exported, tokenizer, opening, 200) for opening in OPENINGS],
    )
    (options.out / "README.md").write_text(model_card(facts))


if __name__ == "__main__":
    main()
