"""A checkpoint in Hugging Face layout with its layers' matrices in int8, for vLLM: compressed-tensors' "int-quantized".

    python to_compressed_tensors.py FOLDER TARGET

A scale for each output channel; activations in int8, a scale for each token, at run time. The head stays in bfloat16.
Runs in Octavo's own Python.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from octavo.model.quantized import quantize

SCHEME = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def main() -> None:
    """Convert."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            tensors[name] = tensor
            continue
        made = quantize(tensor, 8)
        tensors[name] = made.values
        tensors[f"{name}_scale"] = made.scales.to(torch.bfloat16)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": SCHEME}, indent=1))


if __name__ == "__main__":
    main()
