"""Recorded calls do what the calls do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from kernel_case import INTERPRETED, Case

from octavo.kernels.cpu import (
    GroupedPanelLinear,
    Int8PanelLinear,
    PanelLinear,
    add_rms_norm,
    byte_linear,
    fused_attention,
    program,
    recording,
    rms_norm,
    silu_and_mul,
)
from octavo.kernels.cpu.attention import plan
from octavo.kernels.metadata import AttentionMetadata
from octavo.kernels.quantized import QuantizedWeight

ROWS = 3 if INTERPRETED else 37
HIDDEN, INNER = 64, 96


class Chain:
    """A decoder layer's feed-forward part, in memory of its own."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).bfloat16()

        self.x, self.residual, self.weight = random(ROWS, HIDDEN), random(ROWS, HIDDEN), random(HIDDEN)
        self.normed, self.mixed = torch.zeros(ROWS, HIDDEN).bfloat16(), torch.zeros(ROWS, HIDDEN).bfloat16()
        self.activated = torch.zeros(ROWS, INNER).bfloat16()
        self.gate_up = PanelLinear(random(2 * INNER, HIDDEN), random(2 * INNER), "silu_and_mul")
        self.down = PanelLinear(random(HIDDEN, INNER))

        values = torch.randint(-127, 128, (HIDDEN, INNER), generator=generator, dtype=torch.int8)
        self.bytes = Int8PanelLinear(QuantizedWeight(values, torch.full((HIDDEN, 1), 1e-3), None, 8))
        nibbles = torch.randint(0, 256, (INNER, HIDDEN // 2), generator=generator, dtype=torch.uint8)
        self.groups = GroupedPanelLinear(QuantizedWeight(nibbles, torch.full((INNER, 2), 1e-2), None, 4))
        self.summed = torch.zeros(ROWS, HIDDEN).bfloat16()

    def calls(self) -> None:
        rms_norm(self.x, self.weight, 1e-5, self.normed)
        self.gate_up(self.normed, self.activated)
        self.down(self.activated, self.mixed)
        self.bytes(self.activated, self.summed)
        self.groups(self.summed, self.activated)
        add_rms_norm(self.mixed, self.residual, self.weight, 1e-5, self.normed)

    def outcome(self) -> list[torch.Tensor]:
        parts = (self.normed, self.mixed, self.activated, self.residual, self.summed)
        return [part.clone() for part in parts]


@pytest.mark.parametrize("items", [0, 2**20], ids=["rows shared", "rows made by each"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_program_does_what_its_calls_do(threads: int, items: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_linear, "HERE_ITEMS", items)
    plain, recorded = Chain(1), Chain(1)
    monkeypatch.setattr(program, "num_threads", lambda: threads)
    with recording() as made:
        recorded.calls()
    assert not recorded.normed.any()  # nothing is computed yet
    for turn in range(2 if INTERPRETED else 50):
        x = torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(turn)).bfloat16()
        plain.x.copy_(x)
        recorded.x.copy_(x)
        plain.calls()
        made.run()
        for ours, theirs in zip(recorded.outcome(), plain.outcome(), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.skipif(INTERPRETED, reason="one thread only")
def test_programs_of_several_host_threads_at_once() -> None:
    outcomes: dict[int, list[torch.Tensor]] = {}

    def work(seed: int) -> None:
        chain = Chain(seed)
        with recording() as made:
            chain.calls()
        for _ in range(20):
            made.run()
        outcomes[seed] = chain.outcome()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, outcome in outcomes.items():
        chain = Chain(seed)
        for _ in range(20):
            chain.calls()
        assert all(torch.equal(a, b) for a, b in zip(outcome, chain.outcome(), strict=True))
    assert len(outcomes) == 3


class Decode:
    """Attention of two layers, one of which sees a window; two sequences of one row each."""

    def __init__(self) -> None:
        self.case = Case([(1, 400), (1, 70)], num_heads=4, num_kv_heads=2, dim=16, has_norm=True)
        self.kv = self.case.memory(written=True)
        self.outs = [self.case.poisoned() for _ in range(3)]

    def at(self, contexts: list[int]) -> AttentionMetadata:
        """The sequences at an earlier time."""
        case, position = self.case, torch.tensor(contexts) - 1
        blocks = case.meta.block_tables[torch.arange(len(contexts)), position // case.block_size].long()
        return AttentionMetadata(
            case.meta.query_start.clone(),
            torch.tensor(contexts, dtype=torch.int32),
            case.meta.block_tables.clone(),
            position,
            blocks * case.block_size + position % case.block_size,
            1,
            max(contexts),
        )

    def attend(self, meta: AttentionMetadata) -> None:
        case = self.case
        for out, window in zip(self.outs, (None, 33, None), strict=True):
            fused_attention(
                case.qkv, case.norms[0], case.norms[1], 1e-5, case.cos_sin, self.kv, 1, meta, case.scale, out,
                case.num_heads, case.num_kv_heads, window,
            )  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_is_told_of_each_step(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recorded = Decode(), Decode()
    monkeypatch.setattr(program, "num_threads", lambda: threads)
    monkeypatch.setattr(plan, "num_threads", lambda: threads)
    first = recorded.at([3, 17])
    with recording([first]) as made:
        recorded.attend(first)
    assert all(out.isnan().all() for out in recorded.outs)  # nothing is computed yet
    steps = [[3, 17], [399, 70], [130, 64]] if INTERPRETED else [[n, 1 + n % 70] for n in range(1, 401, 7)]
    for contexts in steps:
        plain.attend(plain.at(contexts))
        made.run([recorded.at(contexts)])
        for ours, theirs in zip(recorded.outs, plain.outs, strict=True):
            assert torch.equal(ours, theirs)
    torch.testing.assert_close(recorded.kv, plain.kv, rtol=0, atol=0, equal_nan=True)


def test_attention_of_other_batches_is_refused() -> None:
    decode = Decode()
    meta = decode.at([3, 17])
    with recording([meta]) as made:
        decode.attend(meta)
    with pytest.raises(ValueError, match="2 sequences of one row each"):
        made.run([Case([(1, 5)], num_heads=4, num_kv_heads=2, dim=16).meta])
    longer = Case([(2, 5)], num_heads=4, num_kv_heads=2, dim=16).meta
    with pytest.raises(ValueError, match="2 sequences of one row each"):
        made.run([longer])
    with pytest.raises(ValueError, match="metadata given"), recording():
        decode.attend(meta)
    many = Decode()
    many.case = Case([(3, 400), (1, 70)], num_heads=4, num_kv_heads=2, dim=16, has_norm=True)
    many.outs = [many.case.poisoned() for _ in range(3)]
    with pytest.raises(ValueError, match="brings one row"), recording([many.case.meta]):
        many.attend(many.case.meta)


def test_an_empty_program_does_nothing() -> None:
    with recording() as made:
        pass
    made.run()


def test_what_cannot_be_recorded_is_refused_and_recording_ends() -> None:
    chain = Chain(2)

    def attempt(call: Callable[[], object]) -> None:
        with recording():
            call()

    with pytest.raises(ValueError, match="not gate_rows"):
        attempt(lambda: silu_and_mul(torch.ones(2, 8), torch.ones(2, 4)))
    with pytest.raises(ValueError, match="under way"), recording(), recording():
        pass

    def fails() -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="middle"):
        attempt(fails)
    chain.calls()  # computed at once again
    assert chain.normed.any()
