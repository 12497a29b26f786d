"""Where generated code runs: namespaces of its own, by util-linux's `unshare`, as any user may.

It sees a root of its own, which holds the system's libraries and this Python,
read-only, an empty home, and a scratch folder in memory, the one place that it
can write to. No network, no process but its own, no capabilities, no way to new
ones; limits on time, memory, processes and file size by `scoring.py`. Nothing of
it outlives its first process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantmill import signals
from quantmill.errors import QuantmillError
from quantmill.evaluate.scoring import Job

SCORER: Final = Path(__file__).with_name("scoring.py")
_GRACE = 10.0  # seconds in which a sandbox must be set up and torn down, above the program's own
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SEEN: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")

# What must hold before anything is run: Python works, and no further namespace can be had.
_PROBE: Final = """
import json, random, socket, subprocess
assert subprocess.run(["unshare", "--user", "true"]).returncode, "it may make user namespaces of its own"
"""

# Arguments: the folder to build the root in, the scratch folder's bytes, an ordinary user's number or
# "", how many paths are to be seen and they; then the command. Root builds without a user namespace (its
# limit of processes would not hold), and becomes an ordinary user then, in one of its own like any other:
# there alone can it be set that no further one is made, in which a program would have all capabilities again
# and could mount memory without end. Bound mounts are made read-only one by one, those below them too.
# /proc is there as long as umount and unshare need it; once locked in it is covered instead.
_SETUP: Final = r"""
set -e
root=$1 bytes=$2 user=$3 count=$4; shift 4
mount -t tmpfs -o size=1m,mode=755,nosuid tmpfs "$root"
while [ "$count" -gt 0 ]; do
  if [ -L "$1" ]; then ln -s "$(readlink "$1")" "$root$1"
  elif [ -d "$1" ]; then mkdir -p "$root$1"; mount --rbind "$1" "$root$1"
  elif [ -e "$1" ]; then mkdir -p "$root$(dirname "$1")"; : > "$root$1"; mount --bind "$1" "$root$1"
  fi
  shift; count=$((count - 1))
done
while read -r _ _ _ _ point _; do
  point=$(printf '%b' "$(printf '%s' "$point" | sed 's/\\/\\0/g')")
  case "$point" in "$root"/*) mount -o remount,bind,ro,nosuid,nodev "$point";; esac
done < /proc/self/mountinfo
mkdir -p "$root/dev" "$root/scratch" "$root/proc" "$root/old"
: > "$root/dev/null"; mount --bind /dev/null "$root/dev/null"
mount --rbind /proc "$root/proc"
mount -t tmpfs -o "size=$bytes,nr_inodes=4096,mode=1777,nosuid,nodev,noexec" tmpfs "$root/scratch"
[ -n "$user" ] || echo 0 > /proc/sys/user/max_user_namespaces || true
cd "$root"
pivot_root . old
cd /scratch
mount -o remount,bind,ro,nosuid /
umount -l /old
bare="--no-new-privs --bounding-set=-all --inh-caps=-all"
if [ -n "$user" ]; then
  user="setpriv --reuid $user --regid $user --clear-groups"
  if $user unshare --user true 2> /dev/null; then
    exec $user unshare --user --map-root-user --mount sh -c "
      set -e
      echo 0 > /proc/sys/user/max_user_namespaces
      mount -t tmpfs -o ro,size=4k tmpfs /proc
      exec setpriv $bare -- \"\$@\"" sh "$@"
  fi
  bare="${user#setpriv} $bare"
fi
umount -l /proc
exec setpriv $bare -- "$@"
"""


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds, bytes of address space a process, processes, bytes a file."""

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 16
    file_bytes: int = 16 << 20


@dataclass(frozen=True)
class Verdict:
    """What came of a program: `passed`, `wrong`, `syntax`, `error`, `timeout` or `limits`; and why."""

    kind: str
    message: str


def run(program: str, limits: Limits, *, confined: bool = True) -> Verdict:
    """Run a program; `confined=False` keeps the limits and an empty scratch folder, and nothing else.

    QuantmillError where the sandbox cannot be set up; see `check`.
    """
    work: Job = {
        "program": program,
        "seconds": limits.seconds,
        "memory": limits.memory,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="quantmill-") as folder:
        command = [sys.executable, "-s", "-c", SCORER.read_text("utf-8")]
        command = _confined(command, folder, limits) if confined else command
        home = "/scratch" if confined else folder
        environment = {
            "PATH": _PATH,
            "HOME": home,
            "TMPDIR": home,
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                result, complaint = process.communicate(json.dumps(work), timeout=limits.seconds + _GRACE)
            except subprocess.TimeoutExpired:
                return Verdict("timeout", "the sandbox did not end")
            finally:
                with suppress(ProcessLookupError):  # by --kill-child all that is in the sandbox, too
                    os.killpg(process.pid, signal.SIGKILL)
    try:
        return Verdict(*json.loads(result))
    except ValueError:
        last = signals.last_words(complaint) or signals.how(process.returncode)
        raise QuantmillError(f"the sandbox for generated code failed ({last})") from None


def check(*, accept_unsandboxed: bool) -> bool:
    """Whether generated code is confined here. QuantmillError where it is not and that is not accepted."""
    try:
        verdict = run(_PROBE, Limits())
        why = verdict.message if verdict.kind != "passed" else ""
    except (QuantmillError, OSError) as error:
        why = str(error)
    if not why:
        return True
    if accept_unsandboxed:
        return False
    raise QuantmillError(
        f"generated code cannot be confined on this machine: {why}",
        "bench.humaneval",
        "allow user namespaces (unshare, mount, pivot_root and setpriv of util-linux), or accept the risk "
        "that it does what it likes: accept_unsandboxed: true",
    )


def _confined(command: list[str], folder: str, limits: Limits) -> list[str]:
    """The command within namespaces of its own; `folder` is empty, and where its root is built."""
    unshare = shutil.which("unshare", path=_PATH)
    if unshare is None:
        raise QuantmillError("no unshare (util-linux)")
    root = os.geteuid() == 0
    user = str(random.randrange(60_001, 61_000)) if root else ""
    own = ["--net", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child"]
    own += [] if root else ["--user", "--map-root-user"]
    visible = _visible()
    setup = ["sh", "-c", _SETUP, "sh", folder, str(4 * limits.file_bytes), user, str(len(visible)), *visible]
    return [unshare, *own, "--", *setup, *command]


def _visible() -> list[str]:
    """The paths of the host that the sandbox shows: libraries, and this interpreter's own folders."""
    own = {sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parents[1])}
    inside = tuple(f"{path}/" for path in _SEEN)
    return [*_SEEN, *sorted(path for path in own if not f"{path}/".startswith(inside))]
