"""PagedKVCache beside plain lists of tensors and dense attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import PagedKVCache
from octavo.errors import ConfigError, OutOfBlocksError, RequestError
from octavo.paged_kv import PagedSequence
from octavo.plan import HOLE

HEADS, DIM, LAYERS = 2, 32, 2


def make(num_blocks: int = 32, block_size: int = 4, **options: object) -> PagedKVCache:
    settings: dict[str, object] = {"kernels": "reference", "num_host_blocks": 16, **options}
    return PagedKVCache(
        num_blocks=num_blocks,
        block_size=block_size,
        num_layers=LAYERS,
        num_kv_heads=HEADS,
        head_dim=DIM,
        **settings,  # type: ignore[arg-type]
    )


def dense(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None, scale: float = DIM**-0.5
) -> torch.Tensor:
    """Attention of the last ``len(q)`` tokens in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    rows = torch.arange(len(k) - len(q), len(k))[:, None]
    columns = torch.arange(len(k))[None]
    hidden = columns > rows
    if window is not None:
        hidden |= columns <= rows - window
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


class Model:
    """What each sequence holds, as whole tensors."""

    def __init__(self, cache: PagedKVCache, seed: int = 0) -> None:
        self.cache = cache
        self.random = torch.Generator().manual_seed(seed)
        self.held: dict[PagedSequence, list[list[torch.Tensor]]] = {}

    def new(self, name: str | None = None) -> PagedSequence:
        seq = self.cache.sequence(name)
        self.held[seq] = [[torch.empty(0, HEADS, DIM)] * 2 for _ in range(LAYERS)]
        return seq

    def fork(self, parent: PagedSequence) -> PagedSequence:
        child = parent.fork()
        self.held[child] = [list(layer) for layer in self.held[parent]]
        return child

    def extend(self, counts: dict[PagedSequence, int], heads: int = HEADS * 3) -> None:
        batch = self.cache.batch(counts)
        for layer in range(LAYERS):
            k, v = (torch.randn(batch.num_tokens, HEADS, DIM, generator=self.random) for _ in range(2))
            q = torch.randn(batch.num_tokens, heads, DIM, generator=self.random)
            self.cache.write(layer, batch, k, v)
            out = self.cache.attend(layer, batch, q)
            begin = 0
            for seq, count in counts.items():
                rows = slice(begin, begin + count)
                begin += count
                for which, new in enumerate((k, v)):
                    self.held[seq][layer][which] = torch.cat([self.held[seq][layer][which], new[rows]])
                expected = dense(q[rows], *self.held[seq][layer], window=self.cache.window)
                torch.testing.assert_close(out[rows].double(), expected, atol=2e-5, rtol=1e-4)

    def check(self) -> None:
        for seq, layers in self.held.items():
            assert len(seq) == len(layers[0][0])
            if seq.is_swapped:
                continue
            for layer, (k, v) in enumerate(layers):
                held_k, held_v = self.cache.gather(layer, seq)
                gone = seq.block_table.count(HOLE) * self.cache.block_size
                assert gone == 0 or gone <= len(seq) - self.cache.window + 1
                assert held_k[:gone].isnan().all()
                assert held_v[:gone].isnan().all()
                assert torch.equal(held_k[gone:], k[gone:])
                assert torch.equal(held_v[gone:], v[gone:])
        resident = [seq for seq in self.held if not seq.is_swapped]
        usage = self.cache.usage()
        assert usage.num_used == len({block for seq in resident for block in seq.block_table} - {HOLE})
        assert usage.num_used + usage.num_free == usage.num_blocks


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(["new", "extend", "fork", "free", "out", "in", "room"]), st.integers(0, 99))),
    st.sampled_from([1, 3, 4, 16]),
    st.sampled_from([None, 1, 5, 9]),
)
def test_any_order_of_calls_keeps_every_sequence_whole(
    calls: list[tuple[str, int]], block_size: int, window: int | None
) -> None:
    cache = make(num_blocks=24, block_size=block_size, window=window)
    model = Model(cache)
    model.new()
    for call, number in calls:
        alive = list(model.held)
        chosen = alive[number % len(alive)] if alive else None
        before = cache.usage()
        try:
            if call == "new" or chosen is None:
                model.new()
            elif call == "extend":
                several = {seq: 1 + (number + place) % 6 for place, seq in enumerate(alive[: 1 + number % 3])}
                model.extend({seq: count for seq, count in several.items() if not seq.is_swapped} or {chosen: 1})
            elif call == "fork":
                model.fork(chosen)
            elif call == "free":
                chosen.free()
                del model.held[chosen]
            elif call == "out":
                chosen.swap_out()
            elif call == "in":
                chosen.swap_in()
            else:
                chosen.append_tokens(1 + number % 9)
        except OutOfBlocksError:
            assert cache.usage() == before
        except RequestError:
            assert chosen is not None
            assert chosen.is_swapped or call == "in"
        model.check()
    for seq in list(model.held):
        seq.free()
    assert cache.usage().num_free == 24
    assert cache.usage().num_host_used == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_every_dtype_on_every_kernel(dtype: torch.dtype, kernels: str) -> None:
    cache = make(dtype=dtype, kernels=kernels)
    a, b = cache.sequence("request_1"), cache.sequence("request_2")
    batch = cache.batch({a: 9, b: 1})
    assert batch.positions.tolist() == [*range(9), 0]
    k, v = torch.randn(2, 10, HEADS, DIM).to(dtype)
    q = torch.randn(10, 4, DIM).to(dtype)
    for layer in range(LAYERS):
        cache.write(layer, batch, k, v)
    out = cache.attend(1, batch, q, scale=0.3)
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out[:9].double(), dense(q[:9], k[:9], v[:9], scale=0.3), atol=tolerance, rtol=tolerance)
    assert len(a) == 9
    assert torch.equal(cache.gather(0, a)[1], v[:9])


def test_of_those_that_share_a_tail_all_but_one_copy_it() -> None:
    cache = make(num_blocks=4, block_size=4)
    model = Model(cache)
    parent = model.new()
    model.extend({parent: 6})  # blocks 0 and, half full, 1
    children = [model.fork(parent), model.fork(parent)]
    assert cache.usage().num_used == cache.usage().num_shared == 2
    model.extend({parent: 1, children[0]: 1, children[1]: 1})  # needs just the two blocks that are free
    model.check()
    assert cache.usage().num_free == 0
    assert cache.usage().num_shared == 1


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("window", [1, 7, 16, 33])
def test_a_window_bounds_the_memory_of_any_length(window: int, kernels: str) -> None:
    size, step = 4, 5
    bound = -(-(window - 1 + step) // size) + 1
    cache = make(num_blocks=2 * bound, block_size=size, window=window, kernels=kernels)
    cache._kv.fill_(torch.nan)  # whoever looks at what was never written sees it
    model = Model(cache)
    a, b = model.new(), model.new()
    for i in range(60):
        model.extend({a: 1 + i % step, b: step})
        model.check()
        assert max(len(seq.block_table) - seq.block_table.count(HOLE) for seq in (a, b)) <= bound
        given_back = set(range(2 * bound)) - {*a.block_table, *b.block_table}
        cache._pages[list(given_back)] = 255  # NaN in every dtype
    assert len(b) == 300
    a.free()
    b.swap_out()
    assert cache.usage().num_host_used <= bound
    b.swap_in()
    child = model.fork(b)
    del model.held[a]
    model.extend({b: 2, child: 2})
    model.check()


def test_what_leaves_the_window_counts_as_free_at_once() -> None:
    cache = make(num_blocks=3, block_size=4, window=4)
    model = Model(cache)
    seq = model.new()
    model.extend({seq: 8})
    before = cache.usage()
    with pytest.raises(OutOfBlocksError, match="3 blocks are needed, 2 of 3 are free"):
        cache.batch({seq: 9})
    assert cache.usage() == before
    model.extend({seq: 8})  # one block free, and one that is given back
    model.check()


def test_a_batch_that_does_not_fit_changes_nothing() -> None:
    cache = make(num_blocks=4, block_size=4)
    model = Model(cache)
    a, b = model.new(), model.new()
    model.extend({a: 6})
    before = cache.usage()
    with pytest.raises(OutOfBlocksError, match="2 of 4 are free"):
        cache.batch({a: 2, b: 9})
    assert cache.usage() == before
    model.extend({a: 2, b: 8})
    model.check()


def test_a_rolled_back_batch_was_never_written() -> None:
    cache = make()
    model = Model(cache)
    seq = model.new()
    model.extend({seq: 3})
    batch = cache.batch({seq: 2})
    cache.write(0, batch, torch.ones(2, HEADS, DIM), torch.ones(2, HEADS, DIM))
    with pytest.raises(RequestError, match="half written"):
        seq.fork()
    with pytest.raises(RequestError, match="half written"):
        cache.batch({seq: 1})
    batch.rollback()
    model.check()
    with pytest.raises(RequestError, match="the batch is over"):
        cache.write(1, batch, torch.ones(2, HEADS, DIM), torch.ones(2, HEADS, DIM))
    model.extend({seq: 4})
    model.check()


def test_a_hundred_blocks_hold_what_contiguous_memory_cannot() -> None:
    cache = make(num_blocks=100, block_size=16)
    a, b = cache.sequence("A"), cache.sequence("B")
    a.append_tokens(40 * 16)
    b.append_tokens(40 * 16)
    a.free()
    holes = "".join("." if block not in b.block_table else "B" for block in range(100)).split("B")
    assert sorted(len(hole) for hole in holes if hole) == [20, 40]
    c = cache.sequence("C")
    c.append_tokens(50 * 16)
    assert cache.usage().num_free == 10


def test_bad_input_is_refused_by_name() -> None:
    for field in ("num_blocks", "block_size", "num_layers", "num_kv_heads", "head_dim", "window", "num_host_blocks"):
        options = {"num_blocks": 4, "num_layers": 1, "num_kv_heads": 1, "head_dim": 8, field: -1}
        with pytest.raises(ConfigError, match=field):
            PagedKVCache(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="dtype"):
        make(dtype=torch.int8)
    with pytest.raises(ConfigError, match="kernels"):
        make(kernels="fast")
    cache = make()
    seq = cache.sequence("s")
    with pytest.raises(RequestError, match="exists"):
        cache.sequence("s")
    with pytest.raises(RequestError, match="not swapped out"):
        seq.swap_in()
    for counts in ({}, {seq: 0}, {seq: True}):
        with pytest.raises(RequestError):
            cache.batch(counts)
    batch = cache.batch({seq: 2})
    good = torch.zeros(2, HEADS, DIM)
    with pytest.raises(RequestError, match="not been written"):
        cache.attend(0, batch, good)
    with pytest.raises(RequestError, match="k must have the shape"):
        cache.write(0, batch, good[:1], good)
    with pytest.raises(RequestError, match="v must be"):
        cache.write(0, batch, good, good.half())
    with pytest.raises(RequestError, match="layer"):
        cache.write(LAYERS, batch, good, good)
    cache.write(0, batch, good, good)
    with pytest.raises(RequestError, match="written already"):
        cache.write(0, batch, good, good)
    with pytest.raises(RequestError, match="multiple"):
        cache.attend(0, batch, torch.zeros(2, 3, DIM))
    cache.write(1, batch, good, good)
    other = make().sequence()
    with pytest.raises(RequestError, match="belongs to another"):
        cache.batch({other: 1})
    seq.swap_out()
    with pytest.raises(RequestError, match="swapped out"):
        cache.gather(0, seq)
    seq.free()
    with pytest.raises(RequestError, match="freed"):
        seq.append_tokens(1)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_keys_and_values_in_int8(kernels: str) -> None:
    """Forked, copied and swapped like any other; what is gathered is what attention reads."""
    plain, cache = make(kernels=kernels), make(kernels=kernels, kv_cache_dtype="int8")
    assert cache.usage().bytes_total == plain.usage().bytes_total * (DIM + 4) // (4 * DIM)
    torch.manual_seed(1)
    k, v = torch.randn(2, 10, HEADS, DIM)
    parent = cache.sequence()
    batch = cache.batch({parent: 10})
    for layer in range(LAYERS):
        cache.write(layer, batch, k, v)
    held = cache.gather(1, parent)
    for rows, exact in zip(held, (k, v), strict=True):
        assert ((rows - exact).abs() <= exact.abs().amax(-1, keepdim=True) / 127 * 0.501).all()
    child = parent.fork()
    batch = cache.batch({child: 1, parent: 2})
    q, k, v = torch.randn(3, HEADS * 2, DIM), torch.randn(3, HEADS, DIM), torch.randn(3, HEADS, DIM)
    for layer in range(LAYERS):
        cache.write(layer, batch, k, v)
    out = cache.attend(1, batch, q).double()
    for seq, rows in ((child, slice(0, 1)), (parent, slice(1, 3))):
        before = cache.gather(1, seq)
        assert torch.equal(before[0][:10], held[0])
        torch.testing.assert_close(out[rows], dense(q[rows], *before), rtol=0, atol=1e-5)
        seq.swap_out()
        seq.swap_in()
        assert all(map(torch.equal, cache.gather(1, seq), before))


def test_a_storage_dtype_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype='int4' is unknown: use auto, int8"):
        make(kv_cache_dtype="int4")
