"""Slurm's accounting on this machine: slurmdbd, and a MariaDB of its own, in the cluster's folder."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacct")
ACCOUNT = "project42"

# Who has no account is refused, as on most clusters; the comments, which name a job's rule, are kept.
CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStoragePass={folder}/munge/socket
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
"""

_DAEMON = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort=16819
CommunicationParameters=NoInAddrAny
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16806
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""

PIDS = ("slurmdbd.pid", "mariadbd.pid")
"""Of the daemons, in the order in which they are to end."""


def configure(folder: Path, host: str) -> Path:
    """Write slurmdbd.conf, which only its owner may read."""
    conf = folder / "slurmdbd.conf"
    conf.touch(mode=0o600)
    conf.write_text(_DAEMON.format(folder=folder, host=host), encoding="utf-8")
    return conf


def start(folder: Path, run: Callable[..., None], environment: dict[str, str]) -> None:
    """Start the database and slurmdbd; munge runs already."""
    data, socket = folder / "mariadb", folder / "mariadb.socket"
    run(
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={data}",
        "--user=root",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    )
    with (folder / "mariadb.log").open("ab") as log:
        subprocess.Popen(
            [
                "mariadbd",
                "--no-defaults",
                f"--datadir={data}",
                f"--socket={socket}",
                f"--pid-file={folder / 'mariadbd.pid'}",
                "--user=root",
                "--bind-address=127.0.0.1",
                "--port=16806",
                "--innodb-buffer-pool-size=64M",
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    sql = ("mariadb", "--no-defaults", f"--socket={socket}", "--user=root")
    _until(run, *sql, "--execute=select 1")
    for place in ("localhost", "127.0.0.1"):
        run(*sql, f"--execute=create user slurm@'{place}' identified by 'slurm'")
        run(*sql, f"--execute=grant all on slurm.* to slurm@'{place}'")
    run("slurmdbd")
    _until(run, "sacctmgr", "--noheader", "list", "cluster")


def enrol(run: Callable[..., None]) -> None:
    """Give this user an account, its default."""
    run("sacctmgr", "-i", "-Q", "add", "cluster", "test")
    run("sacctmgr", "-i", "-Q", "add", "account", ACCOUNT, "Cluster=test")
    # root is there already.
    run("sacctmgr", "-i", "-Q", "add", "user", "root", f"Account={ACCOUNT}", "Cluster=test")
    run("sacctmgr", "-i", "-Q", "modify", "user", "root", "set", f"DefaultAccount={ACCOUNT}")


def _until(run: Callable[..., None], *command: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            return run(*command)
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
