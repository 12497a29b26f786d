"""Cores and memory: the machine's, or a cgroup's where that allows less. The trees are made up."""

import os
from pathlib import Path

import psutil
import pytest

from quantmill import machine

GIB = 1 << 30


class Tree:
    """A made-up /proc/self and cgroup file system, of a machine with 16 cores and 64 GiB, 40 of them free."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        real = psutil.virtual_memory()
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: real._replace(total=64 * GIB, available=40 * GIB)
        )
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
        monkeypatch.setattr(machine, "_PROC", folder)

    def of(self, cgroup: str, *mounts: tuple[str, str, str, str]) -> None:
        """The process's /proc/self/cgroup; each mount is (root, folder, kind, options)."""
        (self.folder / "cgroup").write_text(cgroup, encoding="utf-8")
        lines = [
            f"32 31 0:29 {root} {self.folder / point} rw,relatime shared:9 - {kind} {kind} {options}\n"
            for root, point, kind, options in mounts
        ]
        other = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        (self.folder / "mountinfo").write_text(other + "".join(lines), encoding="utf-8")

    def write(self, file: str, text: str) -> None:
        path = self.folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    return Tree(tmp_path, monkeypatch)


def test_without_cgroups_it_is_the_machine(tree: Tree) -> None:
    assert machine.cores() == 16
    assert machine.memory() == machine.Memory(64 * GIB, 40 * GIB, "this machine")


def test_v2_the_least_limit_from_the_own_cgroup_up_to_the_root(tree: Tree) -> None:
    tree.of("0::/slice/job/step\n", ("/", "cg", "cgroup2", "rw,nsdelegate"))
    tree.write("cg/slice/memory.max", f"{8 * GIB}\n")
    tree.write("cg/slice/memory.current", f"{5 * GIB}\n")
    tree.write("cg/slice/memory.stat", f"anon {GIB}\nactive_file {GIB}\ninactive_file {2 * GIB}\n")
    tree.write("cg/slice/cpu.max", "250000 100000\n")
    tree.write("cg/slice/job/memory.max", f"{16 * GIB}\n")
    tree.write("cg/slice/job/memory.current", f"{2 * GIB}\n")
    tree.write("cg/slice/job/cpu.max", "400000 100000\n")
    tree.write("cg/slice/job/step/memory.max", "max\n")
    tree.write("cg/slice/job/step/cpu.max", "max 100000\n")
    assert machine.cores() == 2
    # What files of the disk take in the cache is given back: 8 - (5 - 3).
    assert machine.memory() == machine.Memory(8 * GIB, 6 * GIB, "its cgroup")


def test_v1_has_a_hierarchy_for_each(tree: Tree) -> None:
    tree.of(
        "5:cpu,cpuacct:/docker/a\n4:memory:/docker/a/b\n3:cpuset:/x\n0::/\n",
        ("/", "mem", "cgroup", "rw,memory"),
        ("/", "cpu", "cgroup", "rw,cpu,cpuacct"),
    )
    tree.write("mem/docker/a/memory.limit_in_bytes", f"{4 * GIB}\n")
    tree.write("mem/docker/a/memory.usage_in_bytes", f"{3 * GIB}\n")
    tree.write("mem/docker/a/memory.stat", f"inactive_file 1\ntotal_inactive_file {GIB}\n")
    tree.write("mem/docker/a/b/memory.limit_in_bytes", "9223372036854771712\n")
    tree.write("cpu/docker/a/cpu.cfs_quota_us", "350000\n")
    tree.write("cpu/docker/a/cpu.cfs_period_us", "100000\n")
    assert machine.cores() == 3
    assert machine.memory() == machine.Memory(4 * GIB, 2 * GIB, "its cgroup")


@pytest.mark.parametrize(("root", "own"), [("/docker/abc", "/docker/abc"), ("/", "/../../else")])
def test_a_container_whose_own_cgroup_is_the_mount(tree: Tree, root: str, own: str) -> None:
    tree.of(f"0::{own}\n", (root, "cg", "cgroup2", "rw"))
    tree.write("cg/memory.max", str(GIB))
    tree.write("cg/cpu.max", "100000 100000")
    assert (machine.cores(), machine.memory().total) == (1, GIB)


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("max", 16), ("6400000", 16), ("199999", 1)])
def test_a_fraction_of_a_core_is_not_counted_and_one_is_always_there(
    tree: Tree, quota: str, cores: int
) -> None:
    tree.of("0::/\n", ("/", "cg", "cgroup2", "rw"))
    tree.write("cg/cpu.max", f"{quota} 100000\n")
    assert machine.cores() == cores


@pytest.mark.parametrize("limit", ["-1", "0"])
def test_v1_without_a_quota(tree: Tree, limit: str) -> None:
    tree.of("1:cpu:/\n", ("/", "cpu", "cgroup", "rw,cpu"))
    tree.write("cpu/cpu.cfs_quota_us", limit)
    tree.write("cpu/cpu.cfs_period_us", "100000")
    assert machine.cores() == 16


def test_an_affinity_mask_that_is_smaller_than_the_quota(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    tree.of("0::/\n", ("/", "cg", "cgroup2", "rw"))
    tree.write("cg/cpu.max", "400000 100000\n")
    assert machine.cores() == 1


def test_more_than_the_machine_has_is_no_limit_and_what_others_take_is_gone(tree: Tree) -> None:
    tree.of("0::/a\n", ("/", "cg", "cgroup2", "rw"))
    tree.write("cg/memory.max", str(100 * GIB))
    tree.write("cg/a/memory.max", str(60 * GIB))
    assert machine.memory() == machine.Memory(60 * GIB, 40 * GIB, "its cgroup")


@pytest.mark.parametrize(
    ("folder", "expected"), [("/data/store", True), ("/home/me", False), ("/data2", False)]
)
def test_which_file_systems_are_on_a_network(
    folder: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = "1 0 8:1 / / rw - ext4 /dev/vda rw\n2 1 0:5 /x /data rw shared:1 - nfs4 server:/x rw\n"
    (tmp_path / "mountinfo").write_text(mounts, encoding="utf-8")
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert machine.on_network(Path(folder)) is expected


def test_without_a_list_of_mounts_nothing_is_on_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    assert not machine.on_network(tmp_path)


def test_runs_in_which_a_core_was_taken_away_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    clock, taken, runs = [0.0], [0], [0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_nivcsw": taken[0]}))

    def run() -> None:
        runs[0] += 1
        disturbed = runs[0] % 2 == 0  # the first is the warm-up
        taken[0] += disturbed
        clock[0] += 9.0 if disturbed else 1.0

    assert machine.undisturbed(run, least=3, seconds=3.0) == [1.0, 1.0, 1.0]
    monkeypatch.setattr(resource, "getrusage", lambda _: type("Usage", (), {"ru_nivcsw": next(counter)}))
    counter = iter(range(1000))
    runs[0] = 0
    assert machine.undisturbed(run, least=2, seconds=0.5) == [9.0, 1.0]
