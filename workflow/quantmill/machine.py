"""The cores and the memory that this process may use: a cgroup or an affinity mask may allow less than all.

Limits of cgroups (v1 and v2) hold for all that is below them: from the process's own cgroup up to the root
each is looked at, and the least counts. Where there are no cgroups the machine's own figures are left.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.glusterfs"}
)
"""File systems on which a file may go while it is open here."""

_PROC: Final = Path("/proc/self")
_FILE_CACHE: Final = ("active_file", "inactive_file")


@dataclass(frozen=True)
class Memory:
    """Bytes of memory, total and free; `where` names what limits it."""

    total: int
    available: int
    where: str


def cores() -> int:
    """How many whole cores this process may use, at least 1: of a Slurm job those that it was given."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroups("cpu") if (quota := _quota(folder)) is not None]
    given = [int(share)] if (share := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdecimal() else []
    return max(1, min([allowed, *map(int, quotas), *given]))


def memory() -> Memory:
    """The memory of the machine, or of the cgroup that leaves the least of it."""
    import psutil

    machine = psutil.virtual_memory()
    least = Memory(machine.total, machine.available, "this machine")
    for folder in _cgroups("memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is not None and limit < machine.total:
            left = min(machine.available, max(0, limit - _used(folder)))
            least = Memory(min(limit, least.total), min(left, least.available), "its cgroup")
    return least


def undisturbed(run: Callable[[], object], *, least: int, seconds: float) -> list[float]:
    """The seconds of runs in which the system took no core away from this process, after a warm-up.

    `least` runs and more until `seconds` are over; where there are no `least` such runs in ten times as long,
    the times of all.
    """
    import resource

    times: list[float] = []
    clean: list[float] = []
    run()
    while len(clean) < least or sum(clean) < seconds:
        if len(times) >= least and sum(times) > 10 * seconds:
            break
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == before:
            clean.append(times[-1])
    return clean if len(clean) >= min(3, least) else times


def on_network(folder: Path) -> bool:
    """Whether a folder is on a file system that other machines write to."""
    with suppress(OSError):
        lines = (_PROC / "mountinfo").read_text(encoding="utf-8").splitlines()
        mounts = [line.split() for line in lines]
        kinds = {Path(fields[4]): fields[fields.index("-") + 1] for fields in mounts}
        path = folder.absolute()
        return next((kinds[mount] for mount in (path, *path.parents) if mount in kinds), "") in _NETWORK
    return False


def _cgroups(controller: str) -> Iterator[Path]:
    """The folders of this process's cgroup and of those above it, in each hierarchy that may limit it."""
    with suppress(OSError):
        mounts = [line.split() for line in (_PROC / "mountinfo").read_text(encoding="utf-8").splitlines()]
        for line in (_PROC / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, own = line.split(":", 2)
            for root, point in _mounted(mounts, controller, controllers):
                # A container may see its own cgroup as the root of the mount.
                below = Path(own).relative_to(root) if Path(own).is_relative_to(root) else Path()
                if ".." in below.parts:
                    below = Path()
                folder = point / below
                yield from (folder, *folder.parents[: len(below.parts)])


def _mounted(mounts: list[list[str]], controller: str, controllers: str) -> Iterator[tuple[str, Path]]:
    """(root, mount point) of the hierarchy of a line of /proc/self/cgroup: v2's has no controllers there."""
    for fields in mounts:
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        v1 = kind == "cgroup" and controller in options and controller in controllers.split(",")
        if v1 or (kind == "cgroup2" and not controllers):
            yield fields[3], Path(fields[4])


def _quota(folder: Path) -> float | None:
    """The cores that a cgroup's quota allows; None where it has none."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return int(quota) / int(period)
    quota_us, period_us = _number(folder, "cpu.cfs_quota_us"), _number(folder, "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _used(folder: Path) -> int:
    """The bytes that a cgroup holds and cannot give back: without the cache of files, as `free` counts."""
    used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
    with suppress(OSError, ValueError):
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        stat = {name: int(value) for name, value in (line.split() for line in lines)}
        # v1 counts a cgroup's own under these names, and all that is below it under total_...
        used -= sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in _FILE_CACHE)
    return max(0, used)


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of the files that has one; `max` is none."""
    for name in names:
        with suppress(OSError, ValueError):
            return int((folder / name).read_text(encoding="utf-8"))
    return None
