"""What quantised weights cost in quality: perplexity on tales that the bundled model has not seen, cosines of logits.

    python benchmarks/quantization_quality.py --corpus fairy-tales.txt.gz [--quantizations int8,int4]
        [--shape qwen3-0.6b]

The held-out passages are those that ``tools/train_tales.py`` holds out of the same corpus, and they are scored as it
scores them: a window that moves by half the context. Perplexity is per token. The logits are those of a model of
random weights, for random prompts: cosines between the quantised model's row, computed in bfloat16 as it is served, and
the full model's, computed in float32, so that nothing but the quantised one's rounding counts; and beside it, between
that and the full model computed in bfloat16, whose own rounding counts then too.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from shapes import make_model
from tokenizers import Tokenizer
from torch.nn import functional as F

from octavo import kernels
from octavo.hub import bundled_model
from octavo.kernels import AttentionMetadata, KvLayout
from octavo.model import Decoder, load_model

BLOCK_SIZE = 16


class WholePrompts:
    """A decoder as a function of whole prompts: ``[rows, length]`` token ids to logits ``[rows, length, vocab]``."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        # what the training script asks of its own model
        self.size = SimpleNamespace(max_position_embeddings=decoder.config.context_length)
        self.embed_tokens = SimpleNamespace(weight=torch.empty(0, device=decoder.device))

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits, float32."""
        decoder, config = self.decoder, self.decoder.config
        rows, length = tokens.shape
        width = -(-length // BLOCK_SIZE)
        groups = config.layer_groups
        layout = KvLayout(groups[0].num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, decoder.dtype)
        kv = layout.view(layout.allocate(len(groups) * rows * width))
        positions = torch.arange(length)
        made = []
        for group in range(len(groups)):
            tables = torch.arange(group * rows * width, (group + 1) * rows * width).view(rows, width)
            slots = tables[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
            made.append(
                AttentionMetadata(
                    query_start=torch.arange(rows + 1, dtype=torch.int32) * length,
                    context_len=torch.full((rows,), length, dtype=torch.int32),
                    block_tables=tables.to(torch.int32),
                    positions=positions.repeat(rows),
                    slots=slots.flatten(),
                    max_query=length,
                    max_context=length,
                )
            )
        return decoder.forward(tokens.flatten().long(), kv, made).view(rows, length, -1).clone()


@contextmanager
def training_script() -> Iterator[SimpleNamespace]:
    """``tools/train_tales.py``, from the same checkout."""
    folder = str(Path(__file__).resolve().parent.parent / "tools")
    sys.path.insert(0, folder)
    try:
        import train_tales

        yield train_tales
    finally:
        sys.path.remove(folder)


def loaded(
    folder: Path, quantization: str | None, options: argparse.Namespace, dtype: str = "bfloat16"
) -> WholePrompts:
    """The model, in full or quantised."""
    backend = kernels.load(options.kernels)
    return WholePrompts(load_model(folder, dtype=dtype, kernels=backend, quantization=quantization))


def print_perplexities(options: argparse.Namespace) -> None:
    """Of the bundled model on what it has not seen."""
    folder = bundled_model()
    with training_script() as tales:
        _, held_out, _ = tales.hold_out(tales.split_passages(tales.read_text(options.corpus)))
        stream, text_bytes = tales.encode_stream(Tokenizer.from_file(str(folder / "tokenizer.json")), held_out)
        per_token = text_bytes / (len(stream) - 1)
        print(f"bundled model, {text_bytes:,} held-out bytes, {len(stream) - 1:,} tokens")
        base = None
        for quantization in (None, *options.quantizations):
            bits = tales.bits_per_byte(loaded(folder, quantization, options), stream, text_bytes)
            perplexity = 2 ** (bits * per_token)
            base = perplexity if base is None else base
            change = f"{100 * (perplexity / base - 1):+.3f}%"
            print(f"  {quantization or 'bfloat16':9}: {bits:.5f} bits a byte, perplexity {perplexity:.4f} ({change})")


def print_likeness(options: argparse.Namespace, folder: Path) -> None:
    """Of the logits of a model with random weights."""
    full = loaded(folder, None, options, "float32")
    tokens = torch.randint(0, full.decoder.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))
    expected = full(tokens).flatten(0, 1)
    del full
    rounded = loaded(folder, None, options)(tokens).flatten(0, 1)
    print(f"{options.shape}, random weights, {tokens.numel()} rows of logits")
    for quantization in (None, *options.quantizations):
        logits = rounded if quantization is None else loaded(folder, quantization, options)(tokens).flatten(0, 1)
        alike, beside = F.cosine_similarity(logits, expected), F.cosine_similarity(logits, rounded)
        print(
            f"  {quantization or 'bfloat16':9}: cosine {alike.mean():.6f} on average, {alike.min():.6f} at the least; "
            f"{beside.mean():.6f} to the full model in bfloat16"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="the tales that the bundled model was trained from")
    parser.add_argument("--quantizations", type=lambda names: names.split(","), default=["int8", "int4"])
    parser.add_argument("--shape", default="qwen3-0.6b", help="of the model with random weights")
    parser.add_argument("--kernels", default="cpu")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint of random weights here")
    options = parser.parse_args()
    print_perplexities(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)) / options.shape
        if not (folder / "config.json").exists():
            make_model(options.shape, folder)
        print_likeness(options, folder)


if __name__ == "__main__":
    main()
