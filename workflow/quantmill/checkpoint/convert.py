"""A Hugging Face checkpoint as a GGUF of F16 or BF16, by llama.cpp's own converter.

The converter needs torch: it runs in a process and an environment of its own
(`make converter`), which no other stage needs.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from quantmill import command, signals
from quantmill.checkpoint.export import layers_of
from quantmill.checkpoint.safetensors import Checkpoint
from quantmill.checkpoint.stored import refuse_raw
from quantmill.errors import QuantmillError
from quantmill.files import read_mapping
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.settings import Convert
from quantmill.formats.source import CONVERTED, Converted
from quantmill.progress import BYTES, Log

SCRIPT = Path("llama.cpp", "convert_hf_to_gguf.py")
_RUNNER = Path(__file__).with_name("runner.py")
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
_DRAFT = re.compile(r"(^|\.)mtp\.|\.layers\.(?P<layer>\d+)\.")
_LOOK_EVERY = 0.5  # seconds, at how much is written
_SAID_MAX = 300  # characters of the converter's message in an error line

_UNSUPPORTED = re.compile(r"ERROR:.*Model (\S+) is not supported")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([^']+)'|ImportError: (.+)")
_HASH = re.compile(r"chkhsh: +([0-9a-f]{64})")
_RAISED = re.compile(r"(?:[\w.]*\.)?(\w*(?:Error|Exception|Interrupt))(?:: (.*))?")


def has_drafts(source: Checkpoint, config: dict[str, Any]) -> bool:
    """Whether it has layers for multi-token prediction: named so, or beyond the number of its layers."""
    layers = layers_of(config)
    matches = (match for match in map(_DRAFT.search, source.tensors) if match)
    return any(
        match["layer"] is None or (layers is not None and int(match["layer"]) >= layers) for match in matches
    )


def converter_of(folder: Path) -> tuple[Path, Path]:
    """(python, llama.cpp's folder) of the converter's environment; QuantmillError where there is none."""
    python, script = folder / "bin" / "python", folder / SCRIPT
    for needed in (python, script):
        if not needed.exists():
            raise QuantmillError(
                f"no {needed.relative_to(folder)}, and a checkpoint is to be converted",
                folder,
                "build the converter's environment: make converter (torch for the CPU, about 1.2 GB)",
            )
    return python, script.parent


def run(words: list[str], out: Path, expected: int, log: Log) -> tuple[int, str]:
    """Run the converter until it ends; its exit code and its output. Progress is `out`'s size."""
    log_file = out.with_suffix(".log")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        with (
            log_file.open("wb") as output,
            log.progress("convert", expected, BYTES) as progress,
            subprocess.Popen(words, stdout=output, stderr=output, env=environment) as process,
        ):
            done = 0
            try:
                while process.poll() is None:
                    time.sleep(_LOOK_EVERY)
                    size = out.stat().st_size if out.exists() else 0
                    progress.add(size - done)
                    done = size
            finally:
                process.kill()
        return process.returncode, log_file.read_text(errors="replace", encoding="utf-8")
    finally:
        log_file.unlink(missing_ok=True)


def failure(code: int, output: str, source: Path, *, projector: bool = False) -> QuantmillError:
    """What the converter's failure means, in one line."""
    if code < 0:
        last = signals.last_words(output)
        what = f"the converter was {signals.how(code)}" + (f" ({last})" if last else "")
        cure = signals.cure(code) if code == -signal.SIGKILL else "the log has its whole output"
        return QuantmillError(what, source, cure)
    if match := _UNSUPPORTED.search(output):
        what = f"the converter knows no architecture {match[1]}"
        if projector:
            what = f"the converter knows no projector of {match[1]}"
            return QuantmillError(what, source / "config.json", "leave `projector` out, or take a GGUF of it")
        return QuantmillError(what, source / "config.json", "take a GGUF of the model")
    if "pre-tokenizer was not recognized" in output:
        match = _HASH.search(output)
        what = f"the converter does not know its tokenizer (hash {match[1] if match else 'not output'})"
        cure = "name the pre-tokenizer that it is like: source: {checkpoint: ..., pre_tokenizer: qwen2}"
        return QuantmillError(what, source, cure)
    if match := _MISSING.search(output):
        what = f"the converter's environment lacks {match[1] or match[2]}"
        return QuantmillError(what, source, "build it anew: make converter")
    raised = [match for match in map(_RAISED.fullmatch, output.splitlines()) if match]
    last = f"{raised[-1][1]}: {raised[-1][2]}" if raised else (output.strip().splitlines() or ["nothing"])[-1]
    what = " ".join(last.split()).removesuffix(": None").removesuffix(".")
    what = what if len(what) <= _SAID_MAX else f"{what[: _SAID_MAX - 3]}..."
    return QuantmillError(f"the converter failed ({what})", source, "the log has its whole output")


def report(source: Checkpoint, config: dict[str, Any], header: Header, to: str) -> Converted:
    """What was converted, and to what: `source/<model>.gguf.json` of docs/files.md."""
    return {
        "checkpoint": source.folder.resolve().name,
        "architectures": config.get("architectures"),
        "dtypes": dict(sorted(Counter(tensor.dtype for tensor in source.tensors.values()).items())),
        "drafts": has_drafts(source, config),
        "to": to,
        "file": header.path.name,
        "bytes": header.path.stat().st_size,
        "tensors": len(header.tensors),
        "types": dict(sorted(Counter(tensor.type for tensor in header.tensors).items())),
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `checkpoint.convert`."""
    settings: Convert = args.spec["config"]
    source, config = Checkpoint(args.source), read_mapping(args.source / "config.json")
    refuse_raw(source, config)
    python, llama = converter_of(args.converter)
    expected = sum(2 * t.bytes // _WIDTHS.get(t.dtype, 1) for t in source.tensors.values())
    args.gguf.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(args.gguf.parent).free) < expected:
        raise QuantmillError(
            f"needs {expected:,} bytes, the disk has {free:,} left", args.gguf, "free some space"
        )
    projector = settings.get("projector", False)
    drafts = "some" if projector or has_drafts(source, config) else "none"
    part = args.gguf.with_name(f".{args.gguf.stem}.{secrets.token_hex(4)}.part.gguf")
    pre_tokenizer = settings["pre_tokenizer"] or ""
    words: list[Path | str] = [python, "-P", _RUNNER, llama, pre_tokenizer, drafts, args.source]
    words += ["--outfile", part, "--outtype", settings["to"], *(["--mmproj"] if projector else [])]
    try:
        # Not resolved: the environment's python is a link, and its place decides.
        code, output = run(
            [str(w.absolute() if isinstance(w, Path) else w) for w in words], part, expected, log
        )
        log.say("\n".join(line.rpartition("\r")[2] for line in output.splitlines()))
        if code != 0:
            raise failure(code, output, args.source, projector=projector)
        read_header(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(args.gguf)
    finally:
        with suppress(OSError):
            part.unlink()
    facts = report(source, config, read_header(args.gguf), settings["to"])
    CONVERTED.write(args.facts, facts)
    log.say(f"{facts['tensors']} tensors, {facts['bytes']:,} bytes")


if __name__ == "__main__":
    arguments = command.parser(__doc__)
    arguments.add_argument("--source", type=Path, required=True, help="folder of the checkpoint")
    arguments.add_argument("--converter", type=Path, required=True, help="the converter's environment")
    arguments.add_argument("--gguf", type=Path, required=True, help="the GGUF")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON of what was converted to what")
    command.run(arguments, main)
