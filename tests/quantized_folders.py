"""Checkpoints as other tools quantise them, made from a folder in full by code of their own (numbers are packed one at
a time), and the same model in full, with the values that the quantised one stands for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Numbers:
    """A matrix as whole numbers: ``(q - zeros) * scales``, q and zeros from 0 to 2**bits - 1."""

    q: np.ndarray  # [N, K]
    zeros: np.ndarray  # [N, G]
    scales: np.ndarray  # [N, G], float16's values
    bits: int

    def value(self) -> torch.Tensor:
        """What it stands for, float32."""
        size = self.q.shape[1] // self.scales.shape[1]
        zeros, scales = (each.repeat(size, axis=1) for each in (self.zeros, self.scales))
        return torch.from_numpy(((self.q.astype(np.float64) - zeros) * scales).astype(np.float32))


def numbers(weight: torch.Tensor, bits: int, size: int | None, symmetric: bool) -> Numbers:
    """Round a matrix."""
    full = weight.double().numpy()
    rows, inputs = full.shape
    groups = full.reshape(rows, -1, size or inputs)
    top = 2**bits - 1
    if symmetric:
        zeros = np.full(groups.shape[:2], 2 ** (bits - 1))
        scales = np.abs(groups).max(axis=2) / (2 ** (bits - 1) - 1)
    else:
        low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
        scales = (high - low) / top
        zeros = np.clip(np.round(-low / scales), 1, top).astype(int)
    scales = scales.astype(np.float16).astype(np.float64)
    q = np.clip(np.round(groups / scales[:, :, None]) + zeros[:, :, None], 0, top).astype(int)
    return Numbers(q.reshape(rows, inputs), zeros, scales, bits)


def words(rows: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Numbers of each row in int32 words, the first in the lowest bits; ``order`` says which one each place holds."""
    held = 32 // bits
    packed = np.zeros((rows.shape[0], -(-rows.shape[1] // held)), dtype=np.uint32)
    for row in range(rows.shape[0]):
        for word in range(packed.shape[1]):
            for place in range(held):
                column = word * held + (place if order is None else order[place])
                if column < rows.shape[1]:
                    packed[row, word] |= np.uint32(int(rows[row, column]) << (bits * place))
    return torch.from_numpy(packed.view(np.int32).copy())


def half(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values).astype(np.float16))


def compressed_int(made: Numbers) -> Tensors:
    q = made.q - 128
    return {"weight": torch.from_numpy(q).to(torch.int8), "weight_scale": half(made.scales).float()} | (
        {} if (made.zeros == 128).all() else {"weight_zero_point": torch.from_numpy(made.zeros - 128).to(torch.int8)}
    )


def compressed_packed(made: Numbers) -> Tensors:
    found = {
        "weight_packed": words(made.q, made.bits),
        "weight_scale": half(made.scales),
        "weight_shape": torch.tensor(made.q.shape),
    }
    if (made.zeros != 2 ** (made.bits - 1)).any():
        found["weight_zero_point"] = words(made.zeros.T, made.bits).T.contiguous()
    return found


def gptq(made: Numbers, version: int = 1) -> Tensors:
    inputs, groups = made.q.shape[1], made.scales.shape[1]
    return {
        "qweight": words(made.q, made.bits).T.contiguous(),
        "qzeros": words(made.zeros.T - (1 if version == 1 else 0), made.bits),
        "scales": half(made.scales.T),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (inputs // groups),
        "bias": torch.zeros(made.q.shape[0]),  # AutoGPTQ writes one for every module
    }


AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def awq(made: Numbers) -> Tensors:
    return {
        "qweight": words(made.q.T, 4, AWQ_ORDER),
        "qzeros": words(made.zeros.T, 4, AWQ_ORDER),
        "scales": half(made.scales.T),
    }


def compressed(bits: int, size: int | None, symmetric: bool, form: str = "pack-quantized") -> dict[str, Any]:
    """As llm-compressor writes it."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
        "dynamic": False,
        "actorder": None,
        "observer": "minmax",
    }
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    group = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": inputs if form == "int-quantized" else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def gptq_settings(bits: int, size: int | None, symmetric: bool, **more: Any) -> dict[str, Any]:
    size = -1 if size is None else size
    return {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": symmetric, "desc_act": False, **more}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def quantized_folder(
    source: Path,
    target: Path,
    spell: Callable[[Numbers], Tensors],
    settings: dict[str, Any],
    *,
    bits: int,
    size: int | None,
    symmetric: bool,
    only: str = "_proj",
) -> tuple[Path, Path]:
    """``(quantised, full)``: the matrices of ``source`` whose names hold ``only``, in either way."""
    quantized = Path(shutil.copytree(source, target / "quantized"))
    full = Path(shutil.copytree(source, target / "full"))
    stored: Tensors = {}
    dense: Tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if only not in name or module == name:
            stored[name] = dense[name] = tensor
            continue
        made = numbers(tensor, bits, size, symmetric)
        dense[name] = made.value()
        stored |= {f"{module}.{part}": value for part, value in spell(made).items()}
    save_file(stored, quantized / "model.safetensors")
    save_file(dense, full / "model.safetensors")
    path = quantized / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return quantized, full
