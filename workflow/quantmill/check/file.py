"""Checks a finished file: its data, its tokenizer, its chat template, and that it answers a question.

What is wrong is in the report, and does not end the stage: the card names it, and the run ends in an
error when all else is done (`quantmill.flow.sound`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quantmill import command
from quantmill.check import blocks
from quantmill.check.kind import Kind, kind_of
from quantmill.check.template import QUESTION, BrokenTemplateError, prompt_of, taken_by, template_of
from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.formats import general
from quantmill.formats.checks import CHECKS, Checks
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.publication import FACTS
from quantmill.progress import BYTES, Log


def not_asked(header: Header, kind: Kind, engine: str) -> str:
    """Why a file is not asked anything; empty where it is."""
    if not kind.predicts:
        return f"it is {kind.words}"
    if engine != "mainline":
        return "llama.cpp cannot load it; its own engine evaluated a few tokens when it was written"
    if header.text("tokenizer.ggml.model") in (None, "none", "no_vocab"):
        return "it has no tokenizer"
    return ""


def prompt(header: Header, report: Checks) -> str:
    """A question by the file's chat template, or as it stands; what the template takes is noted."""
    try:
        template = template_of(header)
        if template is not None:
            question = prompt_of(template)
            report["template"] = taken_by(template)
            return question
    except (BrokenTemplateError, QuantmillError) as error:  # the latter of one that takes too long
        report["failures"].append(f"its chat template cannot render a question: {error}")
    return str(QUESTION[0]["content"])


def ask(header: Header, report: Checks, question: str, threads: int) -> None:
    """Have a file answer; note what its tokenizer loses, and what is wrong."""
    from quantmill.check.answer import answer, round_trip
    from quantmill.engine.vocabulary import Vocabulary

    try:
        with Vocabulary(header.path) as vocabulary:
            report["tokenizer"] = round_trip(vocabulary)
            report["answer"] = answer(header.path, vocabulary, question, threads)
    except QuantmillError as error:
        report["failures"].append(f"it does not answer: {str(error).removeprefix(f'{header.path}: ')}")


def check(header: Header, name: str, sha256: str, engine: str, threads: int, log: Log) -> Checks:
    """The report of a finished file, called `name`, of this process's engine."""
    size = sum(tensor.bytes for tensor in header.tensors)
    report: Checks = {
        "file": name,
        "sha256": sha256,
        "tensors": len(header.tensors),
        "bytes": size,
        "tokenizer": "none",
        "sampling": general.sampling(header),
        "template": None,
        "answer": None,
        "not_asked": not_asked(header, kind_of(header), engine),
        "failures": [],
    }
    with log.progress(f"check {name}", size, BYTES) as progress:
        report["failures"] += blocks.faults(header, threads, progress)
    question = prompt(header, report)
    if not report["not_asked"]:
        ask(header, report, question, threads)
    return report


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `check.file`."""
    engine = args.spec["config"].get("engine", "mainline")
    library.use(engine)
    facts = FACTS.read(args.facts)
    header = read_header(args.model, data=engine == "mainline")
    report = check(header, facts["file"], facts["sha256"], engine, args.threads, log)
    CHECKS.write(args.out, report)
    log.warn([f"{facts['file']}: {line}" for line in report["failures"]])
    answered = f"; it answers {report['answer']['text']!r}" if report["answer"] else ""
    log.say(f"{report['tensors']} tensors, {report['bytes']:,} bytes{answered}")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the file (of a split one its first)")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its size and sha256")
    arguments.add_argument("--out", type=Path, required=True, help="checks/<recipe>.json")
    command.run(arguments, main)
