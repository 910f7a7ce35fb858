from __future__ import annotations

import numpy as np
import pytest
import torch
from executor.gpu.stand_in import StandIn
from hypothesis import given
from hypothesis import strategies as st

from octavo.executor.gpu.mailbox import ALIGNMENT, Mailbox


@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=5), min_size=1, max_size=6))
def test_what_is_put_is_taken(letters: list[list[tuple[int, bool]]]) -> None:
    """Arrays of both widths, step after step, in a box that grows when it must."""
    box, rng = Mailbox(StandIn(), 64), np.random.default_rng(0)
    for letter in letters:
        arrays = [rng.integers(-(2**31), 2**31, size, np.int32 if narrow else np.int64) for size, narrow in letter]
        box.begin(sum(array.nbytes + ALIGNMENT for array in arrays))
        starts = [box.put(array) for array in arrays]
        box.send()
        for array, start in zip(arrays, starts, strict=True):
            assert start % ALIGNMENT == 0
            dtype = torch.int32 if array.dtype == np.int32 else torch.int64
            assert box.take(start, len(array), dtype).tolist() == array.tolist()


def test_a_side_is_not_written_to_before_it_was_read() -> None:
    """The stand-in fails where pinned memory changes while it is copied from."""
    device = StandIn()
    box = Mailbox(device, 64)
    for step in range(8):
        box.begin()
        box.put(np.full(4, step))
        box.send()
    device.synchronize()


def test_a_box_of_fixed_places_stays_where_it_is() -> None:
    box = Mailbox(StandIn(), 64)
    before = box.device.data_ptr()
    box.begin()
    box.skip_to(32)
    assert box.put(np.arange(4)) == 32
    box.send()
    assert box.take(32, 4, torch.int64).tolist() == [0, 1, 2, 3]
    assert box.device.data_ptr() == before
    with pytest.raises(ValueError, match="shape"):  # more than there is room for
        box.put(np.arange(4))
