"""A checkpoint in Hugging Face layout as OpenVINO's two files, with its tokenizer. Runs in the peer's venv.

    python to_openvino.py FOLDER TARGET bf16
    python to_openvino.py BF16_TARGET TARGET int8|int4

int8 is symmetric with a scale for each output channel, int4 symmetric in groups of 32 with int8 embeddings and head:
what ``nncf.compress_weights`` is good for without data. Its products take activations in int8 at run time.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def export(source: Path, target: Path) -> None:
    """From safetensors."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM
    from transformers import AutoTokenizer

    OVModelForCausalLM.from_pretrained(source, export=True, load_in_8bit=False, compile=False).save_pretrained(target)
    pair = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    for model, name in zip(pair, ("tokenizer", "detokenizer"), strict=True):
        openvino.save_model(model, target / f"openvino_{name}.xml")


def compress(source: Path, target: Path, precision: str) -> None:
    """From what :func:`export` has written."""
    import nncf
    import openvino

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("openvino_model.*"))
    model = openvino.Core().read_model(source / "openvino_model.xml")
    if precision == "int8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
    else:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32)
    openvino.save_model(model, target / "openvino_model.xml")


if __name__ == "__main__":
    if sys.argv[3] == "bf16":
        export(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        compress(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
