"""The backend as a whole."""

from __future__ import annotations

import inspect

import pytest

from octavo.kernels import load, reference, triton

FUNCTIONS = [name for name in reference.__all__ if inspect.isfunction(getattr(reference, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_those_of_every_backend(name: str) -> None:
    """Names, order and defaults."""
    own, right = (inspect.signature(getattr(backend, name)).parameters for backend in (triton, reference))
    assert [(each.name, each.default) for each in own.values()] == [
        (each.name, each.default) for each in right.values()
    ]


def test_all_is_there() -> None:
    assert load("triton") is triton
    assert all(hasattr(triton, name) for name in triton.__all__)


def test_warming_up_takes_no_time_and_says_nothing() -> None:
    triton.warm_up(lambda *_: pytest.fail("there is nothing to compile yet"))
