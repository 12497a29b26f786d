"""Makes the files of models again from their locks, all of each or samples, and says what differs."""

from __future__ import annotations

import argparse
import shutil
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from quantmill import command, parts, text
from quantmill.errors import QuantmillError
from quantmill.formats.proof import LOCK, VERIFIED, Lock, Verified, VerifiedFile, is_identical
from quantmill.formats.settings import Verify
from quantmill.formats.source import MODEL
from quantmill.progress import Log
from quantmill.proof.rebuild import Job, rebuilt
from quantmill.spec import file_sha256

_CURE = "delete it to have it made again"


def refuse_foreign(lock: Lock, model: str, results: Path) -> None:
    """QuantmillError for a lock of another model, of another source, or of another list of its tensors."""
    where = results / "lock.json"
    if lock["model"] != model:
        raise QuantmillError(f"is of another model, {lock['model']}", where, _CURE)
    locked, here = lock["source"]["sha256"], MODEL.read(results / "model.json")["sha256"]
    if locked != here:
        what = f"is of another source (sha256 {locked[:12]}, the source here has {here[:12]})"
        raise QuantmillError(what, where, _CURE)
    if lock["source"]["manifest"] != file_sha256(results / "manifest.tsv"):
        what = "is not the one of the lock"
        raise QuantmillError(what, results / "manifest.tsv", _CURE)


def verified(results: Path, lock: Lock, mode: str, job: partial[Job]) -> Verified:
    """All files of a lock, one after the other; a store for each, which is removed with what it holds."""
    files = []
    for recipe in lock["recipes"]:
        fresh = parts.new(results / "verify.json")
        fresh.mkdir()
        try:
            with parts.holding(fresh):
                files.append(_in_a_process(job(recipe=recipe, fresh=fresh)))
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    checked = file_sha256(results / "lock.json")
    return {"lock": checked, "mode": "sample" if mode == "sample" else "all", "files": files}


def _in_a_process(job: Job) -> VerifiedFile:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(rebuilt, job).result()
        except BrokenProcessPool:
            what = "the engine died while it was made again"
            raise QuantmillError(what, f"recipe {job.recipe}", "see the log") from None


def lines_of(model: str, file: VerifiedFile, mode: str) -> list[str]:
    """What a user reads of a file: one line, or one for each difference."""
    name = f"{model}: {file['file']}"
    if file["refused"] is not None:
        return [f"{name}: not verified: {file['refused']}"]
    if is_identical(file):
        few = f"{file['compared']} of " if mode == "sample" else ""
        return [f"{name}: {few}{text.plural(file['tensors'], 'tensor')} made again, bit for bit the same"]
    return [
        f"{name}: {one['tensor']}{' (' + one['type'] + ')' if one['type'] else ''}: {one['cause']}"
        for one in file["differences"]
    ]


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `proof.verify`: every model is looked at before it fails for one."""
    config: Verify = args.spec["config"]
    sources = dict(zip(config["models"], args.sources, strict=True))
    locks = {}
    for model in config["models"]:
        locks[model] = LOCK.read(args.results / model / "lock.json")
        refuse_foreign(locks[model], model, args.results / model)
    wrong: list[str] = []
    for model, mode in config["models"].items():
        folder = args.results / model
        job = partial(
            Job,
            results=folder,
            source=command.first_part(sources[model]),
            mode=mode,
            store=args.store,
            store_max=args.store_max,
            threads=args.threads,
            log=args.log,
        )
        report = verified(folder, locks[model], mode, job)
        VERIFIED.write(folder / "verify.json", report)
        for file in report["files"]:
            for line in lines_of(model, file, mode):
                print(line, flush=True)
                if log.path is not None:
                    log.say(line)
        wrong += [f"{model} {file['recipe']}" for file in report["files"] if not is_identical(file)]
    if wrong:
        what = f"{text.plural(len(wrong), 'file')} not verified: {', '.join(wrong)}"
        raise QuantmillError(what, "verify", "the lines above say why, verify.json has them too")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True)
    arguments.add_argument("--results", type=Path, required=True, help="folder with the models' results")
    arguments.add_argument(
        "--sources", type=Path, nargs="+", required=True, help="the source of each model, in order"
    )
    command.run(arguments, main)
