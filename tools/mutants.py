"""Is the memory proved by its tests? Plants one bug at a time and sees whether the torch-free suite notices.

    python tools/mutants.py [NAME ...] [--jobs N] [--list]

Each mutant is a textual patch on a temporary copy of ``src``; this checkout is never touched. A patch that no longer
applies (the code has moved on) is an error: rewrite it. First the suite runs unchanged, and must pass. Then for every
mutant it runs until the first failure, and the table says which test failed, and how. Ends with status 1 if more than
one mutant survives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The random loads before the state machine, which takes minutes to shrink what it finds.
SUITE = ("tests/memory", "tests/simulator", "tests/scheduler")
# Runs the bundled model through torch, and the copies of the source come without it.
LEFT_OUT = ("tests/simulator/test_ladder.py::test_for_real",)
SURVIVORS_ALLOWED = 1
SECONDS_A_TEST = 120
SECONDS_A_MUTANT = 900


class PatchError(Exception):
    """A mutant's patch does not fit the source."""


@dataclass(frozen=True)
class Mutant:
    """A bug: in ``file`` (below ``src/octavo``), ``old`` becomes ``new``. ``old`` must occur exactly ``times``."""

    name: str
    file: str
    old: str
    new: str
    times: int = 1

    def applied(self, source: str) -> str:
        """The source with the bug in it.

        Raises:
            PatchError: ``old`` does not occur as often as it should.
        """
        found = source.count(self.old)
        if found != self.times:
            raise PatchError(
                f"{self.name}: the patch on {self.file} applies {found} times, not {self.times}: {self.old!r}"
            )
        return source.replace(self.old, self.new)


MANAGER = "memory/manager.py"
CACHE = "memory/prefix_cache.py"
MATCHER = "memory/prefix_matcher.py"
FORKS = "memory/forks.py"
SWAPPER = "memory/swapper.py"
POOL = "memory/pool.py"
SWAPS = "memory/swap_table.py"
HOST_CACHE = "memory/host_cache.py"
TREE = "memory/prefix_tree.py"
RESIDENCY = "scheduler/residency.py"
SCHEDULER = "scheduler/scheduler.py"
TURN = "scheduler/turn.py"
SPECULATION = "scheduler/drafting/speculation.py"

MUTANTS = (
    # Sharing and copy-on-write
    Mutant("skip a copy-on-write", FORKS, "refs[table.blocks[i]] > 1 or", "refs[table.blocks[i]] > 2 or"),
    Mutant(
        "give a copied block back twice",
        FORKS,
        "        self._cache.release(source)\n",
        "        self._cache.release(source)\n        self._cache.release(source)\n",
    ),
    Mutant(
        "do not tell the executor of a copy",
        FORKS,
        "        table.sent = min(table.sent, i)\n        self._cache.release(source)\n",
        "        self._cache.release(source)\n",
    ),
    Mutant(
        "forget a reference on fork",
        FORKS,
        "            for block in target.blocks[target.gone :]:\n                self._cache.pool.share(block)\n",
        "",
    ),
    Mutant(
        # (The parent alone may: as long as every fork copies before it writes, nobody is harmed.)
        "let forks write on unasked",
        FORKS,
        "child.num_scheduled = child.capacity = upto\n",
        "child.num_scheduled = upto\n        child.capacity = parent.capacity\n",
    ),
    Mutant(
        "hang a fork's blocks where it did not branch off",
        FORKS,
        "child.node, child.num_published = parent.node, ",
        "child.node, child.num_published = child.node, ",
    ),
    # The prefix tree
    Mutant(
        "publish before it is computed",
        MANAGER,
        "first, last = seq.num_published, seq.num_computed // size\n",
        "first, last = seq.num_published, min(len(seq.tables[0].blocks), len(seq.tokens) // size)\n",
    ),
    Mutant(
        "match the last token",
        MATCHER,
        "last = (len(seq.tokens) - 1) // size",
        "last = len(seq.tokens) // size",
    ),
    Mutant("drop the salt", "request/request.py", '("salt", salt)', '("salt", None)'),
    Mutant(
        "match a block anywhere, not only under its parent",
        MATCHER,
        "                nodes.append(child)\n                parent = child\n",
        "                nodes.append(child)\n",
    ),
    Mutant(
        "change over to a filed block without telling",
        MANAGER,
        "                        table.sent = min(table.sent, i)\n                        cache.release(own)\n",
        "                        cache.release(own)\n",
    ),
    Mutant(
        "keep an evicted block filed",
        CACHE,
        "not self._demote(self.host_cache, node):\n                self.forget(block)\n",
        "not self._demote(self.host_cache, node):\n                pass\n",
    ),
    Mutant(
        "forget that a parent lost a child",
        TREE,
        "            self._children[parent] -= 1\n",
        "            pass\n",
    ),
    Mutant(
        "go on waiting for a leader that is gone",
        MANAGER,
        'before heads."""\n        self.leaders.stop(seq)\n',
        'before heads."""\n',
    ),
    # Release and eviction
    Mutant("reuse a table after release", MANAGER, "            table.blocks.clear()\n", "            pass\n"),
    Mutant(
        "evict a parent before its leaf",
        MANAGER,
        "for i in range(len(seq.tables[0].blocks) - 1, -1, -1):",
        "for i in range(len(seq.tables[0].blocks)):",
    ),
    Mutant(
        "offer a policy parents with children",
        CACHE,
        "        return not self._num_below(node) or self._is",
        "        return True or self._is",
    ),
    Mutant(
        "take a held block for a free one",
        POOL,
        "        if self.refs[block] == 0:\n            self._leave(block)\n",
        "",
    ),
    Mutant(
        "let go of blocks that a plan in flight still names",
        RESIDENCY,
        "        if seq.in_flight:\n            self._leaving",
        "        if False:\n            self._leaving",
    ),
    # Windows
    Mutant(
        "give back a block that the window still shows",
        MANAGER,
        "        gone = self.layout.groups[group].first_visible(seq.num_computed) // self.block_size\n",
        "        gone = self.layout.groups[group].first_visible(seq.num_computed) // self.block_size + 1\n",
    ),
    Mutant(
        "give back what a plan in flight still reads",
        MANAGER,
        "        gone = self.layout.groups[group].first_visible(seq.num_computed) // self.block_size\n",
        "        gone = self.layout.groups[group].first_visible(seq.num_scheduled) // self.block_size\n",
    ),
    Mutant(
        "forget the window bound",
        MANAGER,
        "first_visible(seq.num_computed) // self.block_size\n",
        "first_visible(0) // self.block_size\n",
    ),
    Mutant(
        "match a prefix over a hole in its window",
        MATCHER,
        "            del nodes[self._covered(nodes) :]\n",
        "            pass\n",
    ),
    Mutant("leave empty nodes in the tree", CACHE, "            tree.prune(node)\n", ""),
    # Swapping
    Mutant("swap to wrong slots", SWAPS, "Swapped(first, length, placed)", "Swapped(first, length, placed[::-1])"),
    Mutant("leak a host page", SWAPS, "            self.give_back(_pages(seq.swapped))\n", ""),
    Mutant(
        "write to a host page in the step that reads it",
        SWAPS,
        "        self._returned.extend(pages)\n",
        "        self.host.release(list(pages))\n",
    ),
    Mutant("keep the host pages of one that has ended", RESIDENCY, "        self.memory.swaps.discard(seq)\n", ""),
    Mutant(
        "bring back into a block that is another's by now",
        CACHE,
        "        self.swaps.moves_in.pop(block, None)  # whoever it was for has lost it again\n",
        "",
    ),
    Mutant(
        "come back one token too far",
        SWAPPER,
        "max(swapped.length, held * self._layout.block_size)",
        "max(swapped.length, held * self._layout.block_size) + 1",
    ),
    # The second tier
    Mutant(
        "give up a page that this step writes",
        HOST_CACHE,
        "        return self._num_pages - (self._num_fresh if self._step == self._swaps.num_steps else 0)\n",
        "        return self._num_pages\n",
    ),
    Mutant(
        "demote what is only on its way to the device",
        CACHE,
        "if any(block in self.swaps.moves_in for block in blocks) or not cache.demote(node, blocks):",
        "if not cache.demote(node, blocks):",
    ),
    Mutant(
        "forget a node and keep what was demoted below it",
        CACHE,
        "            self.host_cache.drop_below(node)\n",
        "            pass\n",
    ),
    # Counting
    Mutant(
        "a table one block short",
        MANAGER,
        "wanted = self.layout.num_blocks(upto)",
        "wanted = upto // self.block_size",
        2,
    ),
    Mutant(
        "a victim yields one block more than it does",
        MANAGER,
        "return sum(count == refs[block] for block, count in counts.items() if block not in wanted)",
        "return 1 + sum(count == refs[block] for block, count in counts.items() if block not in wanted)",
    ),
    Mutant(
        "count shared blocks as a victim's own",
        MANAGER,
        "return sum(count == refs[block] for block, count in counts.items() if block not in wanted)",
        "return len(counts)",
    ),
    Mutant(
        "idle cached blocks cost nothing to share",
        MANAGER,
        "need += min(wanted - len(nodes) + idle, self.layout.most_held(g, upto))",
        "need += min(wanted - len(nodes), self.layout.most_held(g, upto))",
    ),
    # Scheduling
    Mutant(
        "take in a chunk from before a preemption",
        SCHEDULER,
        "            if epoch == seq.epoch:\n                seq.num_computed",
        "            if True:\n                seq.num_computed",
    ),
    Mutant("a slot leaks when a sequence ends", RESIDENCY, "        request.num_slots -= 1\n", ""),
    Mutant(
        "those who wait for a prefix hold up the rest",
        TURN,
        "self._awaits(first, nodes):\n            return None\n",
        "self._awaits(first, nodes):\n            return False\n",
    ),
    Mutant("hold out a budget that is used up", TURN, "        self._prefill_room = room\n", ""),
    # Drafts
    Mutant(
        "go on behind drafts that were rejected",
        SCHEDULER,
        "            seq.num_scheduled = seq.num_computed\n",
        "            pass\n",
    ),
    Mutant(
        "take rejected drafts for computed",
        SCHEDULER,
        "        for sample in samples:\n            if resident:\n",
        "        seq.num_computed += resident * (chunk.count - len(samples))\n"
        "        for sample in samples:\n            if resident:\n",
    ),
    Mutant(
        "draft beyond the last token",
        SPECULATION,
        "seq.limit - seq.num_total)",
        "seq.limit - seq.num_total + 1)",
    ),
    Mutant(
        "plan on while drafts are in flight",
        SPECULATION,
        "    seq.num_scheduled += len(drafts)\n",
        "",
    ),
    Mutant(
        "do not tell the executor of blocks for drafts",
        SPECULATION,
        "    if any(table.sent < len(table.blocks) for table in seq.tables):\n",
        "    if False:\n",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What the suite said of a mutant: the test that failed first and its message, or None."""

    mutant: Mutant | None
    caught_by: str | None
    seconds: float


def try_one(mutant: Mutant | None) -> Verdict:
    """Run the suite on a copy of the source with this bug in it (None: with none)."""
    with tempfile.TemporaryDirectory(prefix="octavo-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(
            ROOT / "src" / "octavo", source / "octavo", ignore=shutil.ignore_patterns("__pycache__", "models")
        )
        if mutant is not None:
            path = source / "octavo" / mutant.file
            path.write_text(mutant.applied(path.read_text()))
        began = time.monotonic()
        return Verdict(mutant, _first_failure(source), time.monotonic() - began)


def _first_failure(source: Path) -> str | None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CI": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", "import octavo; print(octavo.__file__)"]
    used = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    if used.returncode:
        return f"does not import: {used.stderr.strip().splitlines()[-1]}"
    if not used.stdout.startswith(str(source)):
        raise PatchError(f"the suite would run on {used.stdout.strip()}, not on the copy in {source}")
    options = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", f"--timeout={SECONDS_A_TEST}"]
    options += [f"--deselect={test}" for test in LEFT_OUT]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "-m", "not long and not alone", *SUITE],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=SECONDS_A_MUTANT,
        )
    except subprocess.TimeoutExpired:
        return f"hung for {SECONDS_A_MUTANT} s"
    if done.returncode == 0:
        return None
    said = [line for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR) ", line)]
    return said[0].split(" ", 1)[1] if said else (done.stdout + done.stderr).strip().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only mutants whose name contains this [all]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time [%(default)s]")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    chosen = parser.parse_args(arguments)
    mutants = [each for each in MUTANTS if not chosen.names or any(name in each.name for name in chosen.names)]
    if not mutants:
        parser.error(f"no mutant's name contains {' or '.join(chosen.names)}; --list shows them")
    if chosen.list:
        print("\n".join(f"{each.name} ({each.file})" for each in mutants))
        return 0
    for mutant in mutants:  # all patches must fit before any time is spent
        mutant.applied((ROOT / "src" / "octavo" / mutant.file).read_text())
    sound = try_one(None)
    if sound.caught_by is not None:
        print(f"the suite fails without any mutant: {sound.caught_by}")
        return 1
    print(f"{'(unchanged)':52} passes ({sound.seconds:.0f} s)", flush=True)
    survivors = 0
    with ThreadPoolExecutor(max(1, chosen.jobs)) as pool:
        for verdict in pool.map(try_one, mutants):
            assert verdict.mutant is not None
            survivors += verdict.caught_by is None
            print(
                f"{verdict.mutant.name:52} {(verdict.caught_by or 'SURVIVED')[:200]} ({verdict.seconds:.0f} s)",
                flush=True,
            )
    print(f"{len(mutants) - survivors} of {len(mutants)} caught")
    return int(survivors > SURVIVORS_ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
