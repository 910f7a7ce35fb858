"""Tensors that do not fit are refused before an address is taken, with their name and what they should be."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kernel_case import Case, backend

CPU = backend("cpu")
X = torch.zeros(4, 32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CPU.rms_norm(X.double(), torch.ones(32), 1e-6, X), "x is .*float64"),
        (lambda: CPU.rms_norm(X[0], torch.ones(32), 1e-6, X), "x is"),
        (lambda: CPU.rms_norm(X.T, torch.ones(4), 1e-6, X), "contiguous rows"),
        (lambda: CPU.rms_norm(X.to("meta"), torch.ones(32), 1e-6, X), "on meta"),
        (lambda: CPU.rms_norm(X, torch.ones(31), 1e-6, X), "weight is"),
        (lambda: CPU.rms_norm(X, torch.ones(64)[::2], 1e-6, X), "weight is"),
        (lambda: CPU.rms_norm(X, torch.ones(32), 1e-6, X[:3]), "out"),
        (lambda: CPU.add_rms_norm(X, X.bfloat16(), torch.ones(32), 1e-6, X), "residual"),
        (lambda: CPU.silu_and_mul(X, torch.zeros(4, 15)), "gate_up"),
        (lambda: CPU.gelu_and_mul(X, torch.zeros(4, 16, dtype=torch.bfloat16)), "gate_up"),
        (lambda: CPU.rotary_embedding(X, X, torch.arange(4), torch.zeros(9, 32)), "q has shape"),
        (lambda: CPU.rotary_embedding(X[:, None], X[:, None], torch.arange(3), torch.zeros(9, 32)), "positions is"),
        (lambda: CPU.rotary_embedding(X[:, None], X[:, None], torch.arange(4), torch.zeros(9, 64)), "rotates more"),
        (lambda: CPU.rotary_embedding(X[:, None], X[:, None], torch.arange(4), torch.zeros(9, 31)), "cos_sin is"),
        (lambda: CPU.copy_blocks(X, torch.arange(2), torch.arange(2)), "cache is"),
        (lambda: CPU.copy_blocks(X.byte(), torch.arange(2), torch.arange(3)), "targets is"),
        (lambda: CPU.copy_blocks(X.byte(), torch.arange(2).int(), torch.arange(2)), "sources is"),
        (lambda: CPU.log_softmax_gather(X, torch.arange(3)), "tokens is"),
        (lambda: CPU.log_softmax_gather(X.bfloat16(), torch.arange(4)), "float32"),
        (lambda: CPU.top_logprobs(torch.zeros(2, 0), 1), "logits are"),
    ],
)
def test_rows_are_checked(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def sample_arguments() -> dict[str, torch.Tensor]:
    return {
        "temperature": torch.ones(4),
        "top_k": torch.zeros(4, dtype=torch.int32),
        "top_p": torch.ones(4),
        "min_p": torch.zeros(4),
        "seeds": torch.zeros(4, dtype=torch.int64),
        "indexes": torch.zeros(4, dtype=torch.int64),
        "positions": torch.zeros(4, dtype=torch.int64),
    }


@pytest.mark.parametrize("name", sample_arguments())
@pytest.mark.parametrize("spoil", [lambda x: x[:3], lambda x: x.double(), lambda x: x.repeat(2)[::2]])
def test_a_samplers_arguments_are_checked(name: str, spoil: Any) -> None:
    arguments = sample_arguments()
    arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=f"{name} is"):
        CPU.sample(X, **arguments)


def attend(case: Case, **changes: Any) -> None:
    arguments = {
        "qkv": case.qkv,
        "q_norm": None,
        "k_norm": None,
        "eps": 1e-6,
        "cos_sin": case.cos_sin,
        "kv": case.memory(written=False),
        "layer": 1,
        "meta": case.meta,
        "scale": 1.0,
        "out": case.poisoned(),
        "num_heads": 4,
        "num_kv_heads": 2,
    }
    CPU.fused_attention(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.zeros(6, 100)}, "qkv is"),
        ({"qkv": torch.zeros(5, 256)}, "qkv is"),
        ({"out": torch.zeros(6, 128, dtype=torch.float16)}, "of one dtype"),
        ({"num_heads": 3}, "cannot share"),
        ({"num_kv_heads": 1, "num_heads": 6}, "KV heads"),
        ({"layer": 2}, "layer=2"),
        ({"layer": -1}, "layer=-1"),
        ({"window": 0}, "window=0"),
        ({"kv": torch.zeros(4, 2, 3, 2, 16, 32)}, "kv is"),
        ({"kv": torch.zeros(4, 2, 2, 2, 16, 64)[..., ::2]}, "kv is"),
        ({"kv": torch.zeros(4, 2, 2, 2, 16, 32, dtype=torch.int32)}, "kv is"),
        ({"sinks": torch.zeros(3)}, "sinks is"),
        ({"q_norm": torch.zeros(31)}, "q_norm is"),
        ({"q_norm": torch.zeros(32), "k_norm": torch.zeros(32).half()}, "k_norm"),
        ({"cos_sin": torch.zeros(99, 64)}, "rotates more"),
    ],
)
def test_attention_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(Case([(5, 9), (1, 4)], 4, 2, 32), **changes)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("block_tables", torch.zeros(2, 4, dtype=torch.int64), "block_tables"),
        ("context_len", torch.zeros(2, dtype=torch.int64), "context_len"),
        ("query_start", torch.zeros(2, dtype=torch.int32), "query_start"),
        ("slots", torch.zeros(5, dtype=torch.int64), "slots"),
    ],
)
def test_metadata_is_checked(field: str, value: torch.Tensor, message: str) -> None:
    case = Case([(5, 9), (1, 4)], 4, 2, 32)
    with pytest.raises(ValueError, match=message):
        attend(case, meta=dataclasses.replace(case.meta, **{field: value}))


def test_paged_attention_and_write_kv_are_checked() -> None:
    case = Case([(5, 9), (1, 4)], 4, 2, 32)
    kv = case.memory(written=True)
    q, out = torch.zeros(6, 4, 32), torch.zeros(6, 4, 32)
    with pytest.raises(ValueError, match="q is"):
        CPU.paged_attention(q.transpose(1, 2).contiguous().transpose(1, 2), kv, 1, case.meta, 1.0, out)
    with pytest.raises(ValueError, match="alike"):
        CPU.paged_attention(q, kv, 1, case.meta, 1.0, out.half())
    with pytest.raises(ValueError, match="meta describes 6 rows"):
        CPU.paged_attention(q[:5], kv, 1, case.meta, 1.0, out[:5])
    k = torch.zeros(6, 2, 32)
    with pytest.raises(ValueError, match="alike"):
        CPU.write_kv(k, k[:5], kv, 1, case.meta.slots)
    with pytest.raises(ValueError, match="heads of"):
        CPU.write_kv(q, q, kv, 1, case.meta.slots)
    with pytest.raises(ValueError, match="slots is"):
        CPU.write_kv(k, k, kv, 1, case.meta.slots[:5])
