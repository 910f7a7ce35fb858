"""What this machine has: memory that is really free, cores that may really be used, instruction sets."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

_ISA = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_ARM_ISA = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2")
_CGROUPS = Path("/sys/fs/cgroup")
_PROCESSORS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor and its memory, as this process may use them."""

    cpu: str  #: model name
    cores: int  #: that this process may run on
    isa: tuple[str, ...]  #: instruction sets that matter for matrix products, as the kernel names them
    total_bytes: int  #: memory, or the control group's limit where it is less
    available_bytes: int  #: free for new use

    @classmethod
    def inspect(cls) -> Machine:
        """Ask the system."""
        cpu, flags = _processor(Path("/proc/cpuinfo"))
        total, available = memory()
        isa = tuple(name for name in _ISA + _ARM_ISA if name in flags)
        return cls(cpu, usable_cores(), isa, total, available)


def memory(cgroups: Path = _CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> tuple[int, int]:
    """(total, available) bytes: the machine's, or less where a control group (a container) allows less.

    File pages that the group could drop at once count as available, as the system itself counts them.
    """
    machine = psutil.virtual_memory()
    total, available = int(machine.total), int(machine.available)
    for limit, used in _group_limits(cgroups, membership):
        total = min(total, limit)
        available = min(available, max(limit - used, 0))
    return total, available


def peak_memory() -> int:
    """Bytes of memory that this process has held at its worst moment."""
    for line in _read(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # No Linux: what is held now stands for it, or what Windows keeps of the peak.
    held = psutil.Process().memory_info()
    return int(getattr(held, "peak_wset", held.rss))


def usable_cores(cgroups: Path = _CGROUPS, processors: Path = _PROCESSORS) -> int:
    """Cores this process may run on: those of its affinity mask, two threads of one core counted once (matrix products
    gain nothing from the second), and no more than a container's quota rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    if affinity is None:
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    else:
        allowed = affinity(0)
        siblings = [_read(processors / f"cpu{number}" / "topology" / "thread_siblings_list") for number in allowed]
        cores = len(set(siblings)) if all(siblings) else len(allowed)
    quota = _read(cgroups / "cpu.max").split()
    if not quota:
        quota = [_read(cgroups / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, -(-int(quota[0]) // int(quota[1]))))
    return cores


def default_threads() -> int:
    """Threads to compute with: ``OMP_NUM_THREADS`` where it is set, as every OpenMP program honours it, else one for
    each usable core."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else usable_cores()


def _group_limits(cgroups: Path, membership: Path) -> list[tuple[int, int]]:
    """(limit, used) of each control group that holds this process and has a limit; version 2 first, then 1."""
    found = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            root = cgroups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            root = cgroups / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        while True:
            limit, used = _read(group / names[0]).strip(), _read(group / names[1]).strip()
            if limit.isdigit() and used.isdigit():
                found.append((int(limit), max(int(used) - _statistic(group / "memory.stat", names[2]), 0)))
            if group == root or root not in group.parents:
                break
            group = group.parent
    return found


def _statistic(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.strip().isdigit():
            return int(value)
    return 0


def _processor(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    name, flags = "", frozenset[str]()
    for line in _read(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not name:
            name = value.strip()
        elif key.strip() in ("flags", "Features") and not flags:
            flags = frozenset(value.split())
    return name or platform.processor() or platform.machine(), flags


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
