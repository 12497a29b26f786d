"""Signs the lock with an ssh key: it has the sha256 of every file, and every statement has its own."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.files import split_lines, write_atomically
from quantmill.formats.settings import Sign
from quantmill.progress import Log

NAMESPACE: Final = "quantmill"

_PROGRAM: Final = "ssh-keygen"


def fingerprint(key: Path, where: object) -> str:
    """The fingerprint of an ssh key, private or public. QuantmillError where it is none; `where` names it."""
    if not key.is_file():
        raise QuantmillError(f"no such file {key}", where, "name an ssh key: ssh-keygen -t ed25519 makes one")
    done = _run(["-l", "-f", str(key.absolute())], where)
    words = done.stdout.split()
    if done.returncode != 0 or len(words) < 2:
        raise QuantmillError(f"{key} is no ssh key", where, "name one: ssh-keygen -t ed25519 makes one")
    return words[1]


def signature(file: Path, key: Path) -> bytes:
    """The signature of a file, as ssh-keygen writes it. QuantmillError where the key cannot be used."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(file, folder))
        done = _run(["-Y", "sign", "-n", NAMESPACE, "-f", str(key.absolute()), str(copy)], key)
        made = copy.with_name(f"{copy.name}.sig")
        if done.returncode != 0 or not made.is_file():
            last = (split_lines(done.stderr.strip()) or ["no reason given"])[-1]
            what = f"cannot sign ({last})"
            raise QuantmillError(what, key, "if it has a passphrase: ssh-add it, and name its .pub")
        return made.read_bytes()


def _run(arguments: list[str], where: object) -> subprocess.CompletedProcess[str]:
    """ssh-keygen, which may not ask for a passphrase: nobody is there to answer."""
    environment = os.environ | {"SSH_ASKPASS_REQUIRE": "force", "SSH_ASKPASS": "false", "LC_ALL": "C"}
    try:
        return subprocess.run(
            [_PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env=environment,
        )
    except FileNotFoundError:
        cure = "install OpenSSH's client, or leave `sign` out"
        raise QuantmillError(f"no {_PROGRAM} to sign with", where, cure) from None


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `proof.sign`."""
    config: Sign = args.spec["config"]
    if (here := fingerprint(args.key, args.key)) != config["key"]:
        what = f"is another key here ({here}) than where the run was started"
        raise QuantmillError(what, args.key, "use the same key on all machines")
    write_atomically(args.out, signature(args.lock, args.key))
    log.say(f"{args.lock.name} signed by {here}")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--lock", type=Path, required=True, help="lock.json")
    arguments.add_argument("--key", type=Path, required=True, help="the ssh key")
    arguments.add_argument("--out", type=Path, required=True, help="lock.json.sig")
    command.run(arguments, main)
