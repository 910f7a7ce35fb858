"""What does not map onto the kernels is refused by file and field, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_folders import AWQ, compressed, compressed_packed, gptq, gptq_settings, quantized_folder
from safetensors.torch import load_file, save_file

from octavo.errors import UnsupportedModelError, WeightsError
from octavo.model.formats import open_weights

MODULE = "model.layers.0.mlp.down_proj"


def group(**changes: Any) -> dict[str, Any]:
    made = compressed(4, 32, True)
    made["config_groups"]["group_0"] |= changes
    return made


def scheme(**changes: Any) -> dict[str, Any]:
    made = compressed(4, 32, True)
    made["config_groups"]["group_0"]["weights"] |= changes
    return made


GROUP = "config_groups.group_0"
STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False}


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"quant_method": "fp8"}, "quant_method"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method"),
        ({}, "quant_method"),
        ({**compressed(4, 32, True), "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**compressed(4, 32, True), "transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
        ({**compressed(4, 32, True), "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config.format"),
        ({**compressed(4, 32, True), "config_groups": {}}, "config_groups"),
        ({**compressed(4, 32, True), "format": "marlin-24"}, f"{GROUP}.format"),
        ({**compressed(8, None, True), "format": "float-quantized"}, f"{GROUP}.format"),
        (group(format="nvfp4-pack-quantized"), f"{GROUP}.format"),
        (group(targets="Linear"), f"{GROUP}.targets"),
        (group(input_activations=STATIC), f"{GROUP}.input_activations.dynamic"),
        (group(input_activations={**STATIC, "type": "float"}), f"{GROUP}.input_activations.num_bits"),
        (group(output_activations=STATIC), f"{GROUP}.output_activations"),
        (scheme(type="float", num_bits=8), f"{GROUP}.weights.type"),
        (scheme(num_bits=3), f"{GROUP}.weights.num_bits"),
        (scheme(strategy="block"), f"{GROUP}.weights.strategy"),
        (gptq_settings(3, 128, True), "bits"),
        (gptq_settings(4, 128, True, checkpoint_format="marlin"), "checkpoint_format"),
        (gptq_settings(4, 128, True, is_marlin_format=True), "is_marlin_format"),
        (gptq_settings(4, 128, True, dynamic={"-:.*": {}}), "dynamic"),
        (gptq_settings(4, 128, True, pack_dtype="int8"), "pack_dtype"),
        ({**AWQ, "bits": 8}, "bits"),
        ({**AWQ, "version": "gemv"}, "version"),
        ({**AWQ, "zero_point": False}, "zero_point"),
    ],
)
def test_settings_that_mean_something_else(tmp_path: Path, settings: dict[str, Any], field: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(UnsupportedModelError) as caught:
        open_weights(tmp_path)
    assert f"{tmp_path / 'config.json'}: quantization_config.{field}" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (gptq_settings(4, 16, True), "multiples of 32"),
        (gptq_settings(4, 48, True), "does not divide the 128 inputs"),
    ],
)
def test_groups_that_there_is_no_arithmetic_for(
    source: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    quantized, _ = quantized_folder(source, tmp_path, gptq, settings, bits=4, size=32, symmetric=True, only=MODULE)
    with pytest.raises(UnsupportedModelError, match=message):
        open_weights(quantized).weight(MODULE, (64, 128))


def spoiled(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_inputs_out_of_order_are_refused(source: Path, tmp_path: Path) -> None:
    quantized, _ = quantized_folder(
        source, tmp_path, gptq, gptq_settings(4, 32, True), bits=4, size=32, symmetric=True, only=MODULE
    )
    spoiled(quantized, lambda tensors: tensors[f"{MODULE}.g_idx"].copy_(tensors[f"{MODULE}.g_idx"].flip(0)))
    with pytest.raises(UnsupportedModelError, match=f"desc_act.*{MODULE}"):
        open_weights(quantized).weight(MODULE, (64, 128))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{MODULE}.weight_scale"), "no tensor .*weight_scale"),
        (lambda tensors: tensors.update({f"{MODULE}.weight_packed": torch.zeros(64, 8, dtype=torch.int32)}), "shape"),
        (lambda tensors: tensors.update({f"{MODULE}.weight_packed": torch.zeros(64, 16)}), "int32"),
    ],
)
def test_damaged_tensors_are_named(
    source: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    settings = compressed(4, 32, True)
    quantized, _ = quantized_folder(
        source, tmp_path, compressed_packed, settings, bits=4, size=32, symmetric=True, only=MODULE
    )
    spoiled(quantized, change)
    with pytest.raises(WeightsError, match=message):
        open_weights(quantized).weight(MODULE, (64, 128))


def test_a_module_that_no_group_targets_is_refused(source: Path, tmp_path: Path) -> None:
    settings = group(targets=["re:.*self_attn.*", "lm_head"])
    quantized, _ = quantized_folder(
        source, tmp_path, compressed_packed, settings, bits=4, size=32, symmetric=True, only=MODULE
    )
    with pytest.raises(WeightsError, match=MODULE):
        open_weights(quantized).weight(MODULE, (64, 128))
