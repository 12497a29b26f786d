"""Fetch a source model from the Hugging Face hub, pinned by its commit."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.formats.settings import Fetch
from quantmill.formats.source import FETCHED
from quantmill.progress import Log


def fetch(repo: str, file: str, revision: str, out: Path) -> None:
    """Download `file` of `repo` at the commit `revision` to `out`, whole or not at all.

    The hub's own client reports progress and resumes what was cut off: its
    partial file lies in a folder beside `out` until it is whole. QuantmillError
    where the file does not exist, is not open to this user, or the hub cannot
    be reached.
    """
    from huggingface_hub import hf_hub_download

    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f".{out.name}.fetch"
    where = f"{repo}/{file} at {revision[:12]}"
    try:
        downloaded = hf_hub_download(repo, file, revision=revision, local_dir=folder)
    except Exception as error:  # the client raises those of several libraries
        if isinstance(error, OSError) and error.errno is not None:
            raise QuantmillError(f"cannot be written ({error.strerror})", out, "free some space") from None
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise QuantmillError(
            f"cannot be fetched ({reason[0]})",
            where,
            "check the name and commit, the network, and your access",
        ) from None
    os.replace(downloaded, out)
    shutil.rmtree(folder)


def main(args: argparse.Namespace, log: Log) -> None:
    """Fetch one file, and note where it is from."""
    settings: Fetch = args.spec["config"]
    fetch(settings["repo"], settings["file"], settings["revision"], args.gguf)
    size = args.gguf.stat().st_size
    FETCHED.write(args.facts, {**settings, "bytes": size})
    log.say(f"{settings['repo']}/{settings['file']}: {size:,} bytes")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--gguf", type=Path, required=True, help="where the file goes")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON file: repo, file, revision, bytes")
    command.run(arguments, main)
