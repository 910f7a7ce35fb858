"""The prefix tree beside a dictionary of whole prefixes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.memory import PrefixTree
from octavo.memory.prefix_tree import block_key
from octavo.plan import HOLE
from octavo.request import PrefixNode

Path = tuple[str | None, tuple[int, ...]]  # the salt, and all tokens of the prefix

SALTS = [None, "a", "b"]
SIZE = 2


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["insert", "insert", "insert", "remove", "find"]),
            st.sampled_from(SALTS),
            st.lists(st.integers(0, 2), min_size=SIZE, max_size=4 * SIZE).map(lambda t: t[: len(t) // SIZE * SIZE]),
        ),
        max_size=60,
    )
)
def test_it_knows_exactly_the_prefixes_that_were_filed(actions: list[tuple[str, str | None, list[int]]]) -> None:
    tree = PrefixTree()
    model: dict[Path, tuple[int, tuple[int, ...]]] = {}  # prefix -> (node, blocks)
    fresh = iter(range(1000))

    def walk(salt: str | None, tokens: list[int]) -> tuple[PrefixNode, int]:
        node: PrefixNode = ("salt", salt)
        for start in range(0, len(tokens), SIZE):
            child = tree.find(node, block_key(tokens, start, start + SIZE))
            if not child:
                return node, start
            node = child
        return node, len(tokens)

    for action, salt, tokens in actions:
        node, known = walk(salt, tokens)
        longest = max(end for end in range(0, len(tokens) + 1, SIZE) if not end or (salt, tuple(tokens[:end])) in model)
        assert known == longest  # exactly: not less, and nothing of another salt
        if action == "insert":
            for start in range(known, len(tokens), SIZE):
                blocks = (next(fresh), next(fresh))
                node = tree.insert(node, block_key(tokens, start, start + SIZE), blocks)
                model[salt, tuple(tokens[: start + SIZE])] = (node, blocks)
        elif action == "remove" and known:
            prefix = (salt, tuple(tokens[:known]))
            assert isinstance(node, int)
            is_leaf = not any(
                other[0] == salt and len(other[1]) == known + SIZE and other[1][:known] == prefix[1] for other in model
            )
            if is_leaf:
                assert tree.remove(node) == model.pop(prefix)[1]
            else:
                with pytest.raises(RuntimeError, match="is not a leaf"):
                    tree.remove(node)
        assert len(tree) == len(model)
        assert sorted(tree.nodes()) == sorted(node for node, _ in model.values())
        for (of, prefix_tokens), (number, blocks) in model.items():
            assert tree.blocks[number] == blocks
            above = prefix_tokens[:-SIZE]
            assert tree.parent(number) == (model[of, above][0] if above else ("salt", of))


def test_salts_never_meet() -> None:
    tree = PrefixTree()
    key = block_key([1, 2], 0, 2)
    node = tree.insert(("salt", "a"), key, (5,))
    for namespace in (("salt", None), ("salt", "b"), ("request", "a"), ("salt", "A")):
        assert tree.find(namespace, key) == 0
    assert tree.find(("salt", "a"), key) == node


def test_neighbouring_tokens_do_not_run_together() -> None:
    """The bytes of a key are of fixed width: [1, 256] is not [257, 0] or the like."""
    keys = {block_key(tokens, 0, 2) for tokens in ([1, 256], [257, 0], [0, 257], [256, 1], [65537, 0])}
    assert len(keys) == 5


def test_a_removed_number_is_used_again_without_its_past() -> None:
    tree = PrefixTree()
    root = ("salt", None)
    parent = tree.insert(root, b"aaaa", (0,))
    child = tree.insert(parent, b"bbbb", (1,))
    with pytest.raises(RuntimeError, match="is not a leaf"):
        tree.remove(parent)
    assert tree.remove(child) == (1,)
    again = tree.insert(root, b"cccc", (2,))
    assert again == child
    assert tree.find(parent, b"bbbb") == 0
    assert tree.parent(again) == root
    assert tree.remove(parent) == (0,)
    for gone in (parent, 99):
        if gone == parent:
            with pytest.raises(RuntimeError):
                tree.remove(gone)
            with pytest.raises(RuntimeError, match="does not exist"):
                tree.parent(gone)


def test_a_path_without_blocks_is_pruned_up_to_what_is_left() -> None:
    tree = PrefixTree()
    path = [tree.insert(("salt", None), b"a", (0, 1))]
    for i in range(1, 4):
        path.append(tree.insert(path[-1], b"a", (2 * i, 2 * i + 1)))
    for node in path[1:]:
        tree.put(node, 0, HOLE)
        assert tree.blocks[node] == (HOLE, 2 * path.index(node) + 1)
    tree.put(path[2], 1, HOLE)
    tree.prune(path[2])
    assert len(tree) == 4  # a child hangs on it
    tree.put(path[3], 1, HOLE)
    tree.prune(path[3])
    assert tree.nodes() == path[:2]
    assert tree.num_children(path[1]) == 0
