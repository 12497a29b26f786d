"""How a stage is a command: its arguments, its log, and errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from quantmill import offload, recorder, spec
from quantmill.errors import QuantmillError
from quantmill.progress import Log
from quantmill.shards import Shard
from quantmill.store import Store


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print one line for errors at import too, such as an engine built for another processor."""
    if isinstance(error, QuantmillError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _one_line


def parser(
    description: str | None,
    *,
    threads: bool = False,
    store: bool = False,
    evaluates: bool = False,
    shards: bool = False,
) -> argparse.ArgumentParser:
    """The arguments that every stage shares, such as `--spec` and `--log`."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument(
        "--spec", type=_spec, required=True, help="canonical JSON of all that decides the output"
    )
    arguments.add_argument("--log", type=Path, help="file for plain progress lines (default: stderr)")
    arguments.add_argument("--memory", type=int, help="MB that its job requested: named where it is killed")
    if evaluates:
        arguments.add_argument("--name", help="the model's name in the config: how the run spreads it")
    if threads:
        arguments.add_argument("--threads", type=int, default=1, help="native threads")
    if store:
        arguments.add_argument(
            "--store", type=Path, required=True, help="folder of the content-addressed store"
        )
        arguments.add_argument("--store-max", type=int, default=50 << 30, help="its size cap in bytes")
        arguments.add_argument(
            "--store-read", type=json.loads, default=[], help="JSON list of stores to read besides"
        )
    if shards:
        arguments.add_argument(
            "--shard", type=Shard.parse, help="such as 0of4: only put these units into the store"
        )
    return arguments


def run(arguments: argparse.ArgumentParser, main: Callable[[argparse.Namespace, Log], None]) -> None:
    """Parse the command line and run `main(args, log)`; a `--model` may be the folder of a split one.

    A QuantmillError ends the process with `error: ...` on stderr (and in the
    log) and exit code 1; an interrupt with code 130. No traceback for either.
    What a signal ends says nothing itself: its watcher does (`quantmill.watch`).
    """
    recorder.attach()
    args = arguments.parse_args()
    log = Log(args.log)
    offload.choose(getattr(args, "name", None))
    try:
        if getattr(args, "model", None) is not None:
            args.model = first_part(args.model)
        main(args, log)
    except QuantmillError as error:
        print(f"error: {error}", file=sys.stderr)
        log.keep(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def store(args: argparse.Namespace, log: Log) -> Store:
    """The store of a stage's command line."""
    return Store(args.store, args.store_max, log, others=map(Path, args.store_read))


def doing(text: str) -> None:
    """Note what the stage is at, such as `row 12 of chats.parquet`: shown if a signal ends it there.

    Cheap enough for every row; `""` where it is done with that.
    """
    recorder.note(recorder.DOING, text)


def first_part(model: Path) -> Path:
    """The file that a split model is loaded by, where its folder is given; else `model` itself.

    QuantmillError where the folder holds none.
    """
    if not model.is_dir():
        return model
    files = sorted(model.glob("*.gguf"))
    if not files:
        raise QuantmillError("holds no GGUF", model, "delete it to have it made again")
    return files[0]


def _spec(text: str) -> dict[str, Any]:
    try:
        return spec.read_argument(text, Path(os.environ.get("QUANTMILL_SPECS", "")))
    except QuantmillError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
