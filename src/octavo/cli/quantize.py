"""``octavo quantize``: a model written again in few bits."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from octavo.cli.terminal import LoadProgress
from octavo.config import QUANTIZATIONS, EngineConfig
from octavo.hub import resolve_model


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder in Hugging Face layout, or a hub id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.", show_default=False)],
    quantization: Annotated[
        str, typer.Option("--quantization", "-q", metavar="|".join(QUANTIZATIONS), help="How many bits.")
    ] = "int8",
    revision: Annotated[str | None, typer.Option(help="The hub revision: branch, tag or commit.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Write a model in 8 or 4 bits, so that it starts sooner and takes less room. The folder serves as any model does,
    and other engines that know compressed-tensors read it too."""
    config = EngineConfig(model=model, revision=revision, quantization=quantization)
    with LoadProgress(quiet) as progress:
        folder = resolve_model(config.model, config.revision, progress)
        # By name: it stands on torch's side, which is imported only here.
        done = importlib.import_module("octavo.model.export").export(folder, out, quantization, progress)
    if not quiet:
        sizes = f"{done.nbytes_before / 2**20:,.0f} MiB are now {done.nbytes / 2**20:,.0f} MiB"
        print(f"{done.folder}: {done.modules} matrices in {quantization}, {sizes}", file=sys.stderr)
