from pathlib import Path

import psutil
import pytest

from octavo.executor.machine import Machine, default_threads, memory, usable_cores


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_machine_describes_itself() -> None:
    machine = Machine.inspect()
    assert machine.cpu
    assert machine.cores >= 1
    assert 0 < machine.available_bytes <= machine.total_bytes <= psutil.virtual_memory().total


def test_without_control_groups_memory_is_the_machines(tmp_path: Path) -> None:
    total, available = memory(tmp_path, tmp_path / "none")
    assert total == psutil.virtual_memory().total
    assert 0 < available <= total


def test_the_tightest_group_above_the_process_counts(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/outer/inner\n")
    group(
        tmp_path / "outer", memory__max="3000000\n", memory__current="1000000\n", memory__stat="inactive_file 400000\n"
    )
    group(tmp_path / "outer/inner", memory__max="max\n", memory__current="900000\n")
    assert memory(tmp_path, tmp_path / "cgroup") == (3_000_000, 2_400_000)
    group(tmp_path / "outer/inner", memory__max="1000000\n")
    assert memory(tmp_path, tmp_path / "cgroup") == (1_000_000, 100_000)
    group(tmp_path / "outer/inner", memory__current="2000000\n")
    assert memory(tmp_path, tmp_path / "cgroup") == (1_000_000, 0)


def test_version_one_groups_count_too(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n")
    group(
        tmp_path / "memory/job",
        memory__limit_in_bytes="5000000\n",
        memory__usage_in_bytes="2000000\n",
        memory__stat="cache 7\ntotal_inactive_file 500000\n",
    )
    assert memory(tmp_path, tmp_path / "cgroup") == (5_000_000, 3_500_000)


def test_a_quota_of_cores_is_rounded_up(tmp_path: Path) -> None:
    free = usable_cores(tmp_path)
    assert free >= 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores(tmp_path) == free
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    group(tmp_path / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert usable_cores(tmp_path) == free
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("90000\n")
    assert usable_cores(tmp_path) == 1


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    for number, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        group(tmp_path / f"cpu{number}/topology", thread_siblings_list=siblings + "\n")
    assert usable_cores(tmp_path, tmp_path) == 2
    (tmp_path / "cpu5/topology/thread_siblings_list").unlink()
    assert usable_cores(tmp_path, tmp_path) == 4


def test_threads_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    for unusable in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert default_threads() == usable_cores()
