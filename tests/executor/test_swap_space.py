import torch

from octavo.executor.swap_space import SwapSpace


def test_pages_go_out_and_come_back_anywhere() -> None:
    cache = torch.randint(0, 256, (10, 32), dtype=torch.uint8)
    before, space = cache.clone(), SwapSpace(32)
    space.swap_out(cache, ((3, 0), (7, 5)))
    space.swap_out(cache, ((1, 2), (2, 40)))  # more than was reserved: what is there stays
    cache.zero_()
    space.swap_in(cache, ((5, 0), (0, 1), (40, 9), (2, 4)))
    assert torch.equal(cache[[0, 1, 9, 4]], before[[7, 3, 2, 1]])
    assert not cache[[2, 3, 5, 6, 7, 8]].any()
