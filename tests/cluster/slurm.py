"""A Slurm of two nodes on this machine, of Debian's packages: slurmctld, slurmd, slurm-client and munge.

Everything listens on loopback and lies in one folder; only /etc/slurm gets links to its configuration,
because the jobs' own environment does not name it. With accounting also slurmdbd and mariadb-server.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from cluster import accounting

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch")
ETC = Path("/etc/slurm")
NODES = ("n1", "n2")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
KillWait=5
MinJobAge=86400
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobCompType=jobcomp/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=16821 CPUs={cores} RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=16822 CPUs=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 DefMemPerCPU=500 State=UP
PartitionName=small Nodes=n2 MaxTime=60 DefMemPerCPU=500 State=UP
"""


_UNACCOUNTED = """\
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""


def why_not(*, accounted: bool = False) -> str | None:
    """What is missing here; None where nothing is."""
    needed = {"slurmctld slurmd slurm-client munge": NEEDED}
    if accounted:
        needed["slurmdbd mariadb-server"] = accounting.NEEDED
    for packages, names in needed.items():
        missing = [name for name in names if shutil.which(name, path=_path()) is None]
        if missing:
            return f"no {missing[0]} here (Debian: apt-get install {packages})"
    return None if os.geteuid() == 0 else "only root starts a Slurm"


class Cluster:
    """The daemons of a cluster in `folder`, with accounting if it is `accounted`.

    The first node has `cores`, the second has one.
    """

    def __init__(self, folder: Path, *, accounted: bool = False, cores: int = 2) -> None:
        self.folder, self.accounted, self.cores = folder, accounted, cores
        self._links = ["slurm.conf", "cgroup.conf", *(["slurmdbd.conf"] if accounted else [])]

    def start(self) -> None:
        """Write the configuration and start the daemons; the nodes are up when it returns."""
        for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        conf = CONF + (accounting.CONF if self.accounted else _UNACCOUNTED)
        conf = conf.format(host=host, folder=self.folder, cores=self.cores)
        (self.folder / "slurm.conf").write_text(conf, encoding="utf-8")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n", encoding="utf-8")
        if self.accounted:
            accounting.configure(self.folder, host)
        ETC.mkdir(exist_ok=True)
        for name in self._links:
            with suppress(FileNotFoundError):
                (ETC / name).unlink()
            (ETC / name).symlink_to(self.folder / name)
        munge = self.folder / "munge"
        self._run(
            "munged",
            f"--key-file={key}",
            *(f"--{name}={munge / name.partition('-')[0]}" for name in ("socket", "pid-file", "log-file")),
            f"--seed-file={munge / 'seed'}",
        )
        if self.accounted:
            accounting.start(self.folder, self._run, _environment())
            accounting.enrol(self._run)
        self._run("slurmctld", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.up(node)
        deadline = time.monotonic() + 30
        while set(self.output("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()) != set(NODES):
            assert time.monotonic() < deadline, self.output("sinfo", "-N", "-l")
            time.sleep(0.2)

    def up(self, node: str) -> None:
        """Start a node."""
        self._run("slurmd", "-f", str(self.folder / "slurm.conf"), "-N", node)

    def down(self, node: str) -> None:
        """Kill a node."""
        self._kill(self.folder / f"slurmd.{node}.pid", signal.SIGKILL)

    def stop(self) -> None:
        """End all jobs and daemons; the next cluster takes their ports."""
        with suppress(subprocess.CalledProcessError):
            self._run("scancel", "-u", "root")
        accounts = accounting.PIDS if self.accounted else ()
        ending = []
        for name in (*(f"slurmd.{node}.pid" for node in NODES), "slurmctld.pid", *accounts, "munge/pid"):
            ending += self._kill(self.folder / name, signal.SIGTERM)
        psutil.wait_procs(ending, timeout=20)
        for name in self._links:
            if (ETC / name).is_symlink() and (ETC / name).readlink() == self.folder / name:
                (ETC / name).unlink()

    def output(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=True)
        return done.stdout

    def jobs(self) -> list[str]:
        """The jobs that run or wait: `number state comment`."""
        return self.output("squeue", "-h", "-t", "R,PD", "-o", "%i %t %k").splitlines()

    def _run(self, *command: str) -> None:
        # Daemons keep what they are given open: a pipe would never end.
        with (self.folder / "output.log").open("ab") as log:
            subprocess.run(command, env=_environment(), stdout=log, stderr=log, check=True)

    def _kill(self, pid: Path, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the process that a file names, if there is one: it is given back."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(pid.read_text("utf-8")))
            process.send_signal(number)
            return [process]
        return []


@contextmanager
def running(*, accounted: bool = False, cores: int = 2) -> Iterator[Cluster]:
    """A cluster that runs during the block."""
    # Munge wants a folder that everybody may enter, unlike pytest's own. A job that ends may still write.
    with TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder), accounted=accounted, cores=cores)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def _environment() -> dict[str, str]:
    return os.environ | {"PATH": _path()}


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
