"""Which layers share a block table: groups of one kind and of one size, so that one pool serves them all.

A page holds one group's layers; so groups must have equally many, and the last group of a kind may have places that no
layer fills. (Hybrid models in vLLM are laid out so, too.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from octavo.plan import LayerGroup

MOST_GROUPS = 8
"""Tables a sequence may have: each costs the scheduler and a step's preparation their share of time."""

_FULL_WEIGHT = 4
"""An unfilled place costs memory in proportion to what a layer of its kind keeps: a full layer all of the context, a
windowed one its window. Contexts of four windows are taken as the common case."""


def group_size(counts: Sequence[tuple[int | None, int]]) -> int:
    """How many layers a group has.

    Of the sizes that make at most :data:`MOST_GROUPS` groups (or as many as there are kinds, if they are more), the
    one that leaves the fewest places unfilled, weighed by what they cost; of equals the largest, for fewer tables.

    Args:
        counts: for each kind of layer its window (None sees all) and how many layers there are.
    """
    most = max(MOST_GROUPS, len(counts))

    def groups(size: int) -> int:
        return sum(-(-count // size) for _, count in counts)

    def unfilled(size: int) -> int:
        return sum((_FULL_WEIGHT if window is None else 1) * (-count % size) for window, count in counts)

    sizes = range(1, max(count for _, count in counts) + 1)
    return min((size for size in sizes if groups(size) <= most), key=lambda size: (unfilled(size), -size))


def group_layers(
    windows: Sequence[int | None], context_length: int
) -> tuple[tuple[LayerGroup, ...], tuple[tuple[int, int], ...]]:
    """The groups, those that see all first, and each layer's (group, place within it).

    Args:
        windows: one entry a layer: how many tokens a token sees, itself included; None sees all.
        context_length: a window as wide as this never lets anything go, so such a layer counts as one that sees all.
    """
    kinds = [window if window is not None and window < context_length else None for window in windows]
    counts = sorted(Counter(kinds).items(), key=lambda kind: kind[0] or 0)
    size = group_size(counts)
    groups: list[LayerGroup] = []
    places: dict[int, tuple[int, int]] = {}
    for kind, _ in counts:
        layers = [layer for layer, other in enumerate(kinds) if other == kind]
        for number, layer in enumerate(layers):
            places[layer] = (len(groups) + number // size, number % size)
        groups.extend([LayerGroup(size, kind)] * -(-len(layers) // size))
    return tuple(groups), tuple(places[layer] for layer in range(len(kinds)))
