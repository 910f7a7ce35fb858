"""What one decoding step costs: the decoder alone, no scheduler, beside transformers' single stream.

    python benchmarks/decoder_step.py [--shapes smollm2-135m,qwen3-0.6b] [--rows 1,16,32] [--context 256] [--profile]

Weights are random, in bfloat16; every row is another sequence with ``--context`` tokens in memory. Prints the median
and the least milliseconds a step, and the rate at which the weights are read (all of them once a step).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shapes import SHAPES, make_model

from octavo import kernels
from octavo.kernels import AttentionMetadata, KvLayout
from octavo.model import Decoder, load_model


def decode_metadata(rows: int, context: int, block_size: int, groups: int) -> list[AttentionMetadata]:
    """Every sequence one token, its blocks its own; for each layer group."""
    width = -(-context // block_size)
    blocks = torch.randperm(groups * rows * width, generator=torch.Generator().manual_seed(0)).to(torch.int32)
    start = torch.arange(rows + 1, dtype=torch.int32)
    return [_metadata(tables, start, context, block_size) for tables in blocks.view(groups, rows, width)]


def _metadata(tables: torch.Tensor, start: torch.Tensor, context: int, block_size: int) -> AttentionMetadata:
    rows = len(tables)
    last = tables[:, (context - 1) // block_size].long() * block_size + (context - 1) % block_size
    return AttentionMetadata(
        query_start=start,
        context_len=torch.full((rows,), context, dtype=torch.int32),
        block_tables=tables,
        positions=torch.full((rows,), context - 1, dtype=torch.int64),
        slots=last,
        max_query=1,
        max_context=context,
    )


def seconds(step: Callable[[], object], budget: float) -> list[float]:
    """Times of as many steps as fit the budget, after two that warm up."""
    step(), step()
    times: list[float] = []
    while sum(times) < budget or len(times) < 5:
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return times


def stepper(decoder: Decoder, rows: int, context: int, block_size: int = 16) -> Callable[[], torch.Tensor]:
    """One decoding step of ``rows`` sequences."""
    config = decoder.config
    groups = config.layer_groups
    layout = KvLayout(groups[0].num_layers, config.num_kv_heads, config.head_dim, block_size, decoder.dtype)
    kv = layout.view(layout.allocate(len(groups) * rows * -(-context // block_size)))
    kv.normal_()
    meta = decode_metadata(rows, context, block_size, len(groups))
    tokens = torch.arange(rows, dtype=torch.int64)
    return lambda: decoder.forward(tokens, kv, meta)


def transformers_stepper(folder: Path, context: int) -> Callable[[], object]:
    """transformers' own step of one stream."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.inference_mode():
        cache = model(torch.arange(context - 1)[None], use_cache=True).past_key_values
    token = torch.tensor([[7]])

    def step() -> None:
        with torch.inference_mode():
            model(token, past_key_values=cache, use_cache=True)

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(name for name in SHAPES if name != "tiny"))
    parser.add_argument("--rows", default="1,16,32")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--kernels", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-transformers", action="store_true")
    arguments = parser.parse_args()
    backend = kernels.load(arguments.kernels)
    backend.set_num_threads(torch.get_num_threads())
    with tempfile.TemporaryDirectory() as scratch:
        for shape in arguments.shapes.split(","):
            folder = (arguments.folder or Path(scratch)) / shape
            if not (folder / "config.json").exists():
                make_model(shape, folder)
            began = time.perf_counter()
            decoder = load_model(folder, dtype=arguments.dtype, kernels=backend)
            print(f"{shape}: loaded in {time.perf_counter() - began:.1f} s, {torch.get_num_threads()} threads")
            for note in decoder.notes:
                print(f"  {note}")
            table = decoder.config.vocab_size * decoder.config.hidden_size * decoder.dtype.itemsize
            for rows in map(int, arguments.rows.split(",")):
                step = stepper(decoder, rows, arguments.context)
                times = seconds(step, arguments.seconds)
                middle, least = statistics.median(times), min(times)
                rate = (decoder.weights_bytes - table) / middle / 1e9
                print(f"  {rows:3d} rows: {middle * 1e3:7.2f} ms median, {least * 1e3:7.2f} least, {rate:5.1f} GB/s")
                if arguments.profile:
                    with torch.profiler.profile() as profile:
                        for _ in range(5):
                            step()
                    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))
            if not arguments.no_transformers:
                times = seconds(transformers_stepper(folder, arguments.context), arguments.seconds)
                middle, least = statistics.median(times), min(times)
                print(f"  transformers, one stream: {middle * 1e3:7.2f} ms median, {least * 1e3:7.2f} least")


if __name__ == "__main__":
    main()
