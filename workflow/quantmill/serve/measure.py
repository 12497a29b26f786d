"""Speed of a file behind a server: prefill and decode rates of each workload, as a client sees them."""

from __future__ import annotations

import argparse
import os
import random
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from quantmill import command, offload
from quantmill.engine.llama import fitting
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.formats import settings
from quantmill.formats.ggufio import read_header
from quantmill.formats.measurements import SERVED, Served, ServedRate, Workload
from quantmill.formats.publication import model_sha256
from quantmill.measure.speed import machine
from quantmill.progress import Log
from quantmill.serve.gpu import Watch
from quantmill.serve.server import Server, Timing, command_of, free_port, serving, version_of

_ROOM = 64  # positions beyond the longest workload
_TEXT = """
about after air all animal answer around because been before best bird boat book boy bring build car carry
change children city close cold come could country cut day did door down each early earth eat end every eye
face family far farm father feet few field find fire first fish five follow food form four friend from girl
give good great green ground grow hand hard have head hear help here high home horse hot house idea island
"""
_WORDS = tuple(_TEXT.split())


def text_of(vocabulary: Vocabulary, tokens: int, run: int) -> tuple[str, int]:
    """A text of common words of about `tokens` tokens, and how many it has, a BOS counted.

    It begins with another word in each `run`, so that no server finds the
    beginning of a prompt in what it has cached of an earlier one.
    """
    drawn = random.Random(run)
    words = [_WORDS[run % len(_WORDS)]]
    count = 0
    while count < tokens:
        words += drawn.choices(_WORDS, k=max(1, (tokens - count) // 2))
        count = _count(vocabulary, words)
    while count > tokens and len(words) > 1:
        del words[-max(1, (count - tokens) // 2) :]
        count = _count(vocabulary, words)
    return " ".join(words), count


def _count(vocabulary: Vocabulary, words: list[str]) -> int:
    return len(vocabulary.tokenize(" ".join(words))) + vocabulary.adds_bos


def rates(prompts: list[int], timings: list[Timing]) -> tuple[ServedRate, ServedRate]:
    """(prefill, decode) in tokens a second: of the prompts up to the first token, and of those after it."""
    prefill = [tokens / timing.first for tokens, timing in zip(prompts, timings, strict=True)]
    decode = [(timing.tokens - 1) / timing.rest for timing in timings]
    return _rate(prefill), _rate(decode)


def _rate(samples: list[float]) -> ServedRate:
    spread = stdev(samples) if len(samples) > 1 else 0.0
    return {"mean": fmean(samples), "sd": spread, "samples": samples}


class Measured(NamedTuple):
    """The workloads, and how many tokens were drafted and accepted in all of them."""

    workloads: list[Workload]
    drafted: int
    accepted: int


def measured(
    server: Server,
    vocabulary: Vocabulary,
    workloads: list[settings.Workload],
    repetitions: int,
    log: Log,
    what: str = "served",
) -> Measured:
    """Each workload's rates over `repetitions` runs, after one run that is not counted."""
    never = vocabulary.ends()
    run = drafted = accepted = 0
    server.complete(text_of(vocabulary, 16, run)[0], 4, never)
    rows: list[Workload] = []
    with log.progress(what, len(workloads) * repetitions, "runs") as progress:
        for workload in workloads:
            prompts, timings = [], []
            for _ in range(repetitions):
                run += 1
                prompt, count = text_of(vocabulary, workload["prompt"], run)
                prompts.append(count)
                timing = server.complete(prompt, workload["generate"], never)
                if timing.pieces < max(2, workload["generate"] / 4):
                    # Its text came late, held back (bytes that are no whole character): its first token
                    # is timed by itself, after another prompt of that length.
                    run += 1
                    first = server.complete(text_of(vocabulary, workload["prompt"], run)[0], 1, never).first
                    rest = max(timing.first + timing.rest - first, 1e-6)
                    timing = timing._replace(first=first, rest=rest)
                timings.append(timing)
                drafted, accepted = drafted + timing.drafted, accepted + timing.accepted
                progress.add(1)
            prefill, decode = rates(prompts, timings)
            rows.append(
                {
                    "name": workload["name"],
                    "prompt_tokens": round(fmean(prompts)),
                    "generated_tokens": workload["generate"],
                    "prefill": prefill,
                    "decode": decode,
                }
            )
    return Measured(rows, drafted, accepted)


def context_for(workloads: list[settings.Workload], model: Path) -> int:
    """The positions that the longest workload needs. QuantmillError where the model was not made for them."""
    longest = max(workloads, key=lambda workload: workload["prompt"] + workload["generate"])
    tokens = longest["prompt"] + longest["generate"]
    header = read_header(model)
    limit = header.number(f"{header.architecture}.context_length", tokens)
    if tokens > limit:
        raise QuantmillError(
            f"{tokens:,} tokens, the model's context is {limit:,}",
            f"workload {longest['name']}",
            "make it shorter under bench.served.workloads",
        )
    return min(tokens + _ROOM, limit)


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `serve.measure`."""
    config: settings.Served = args.spec["config"]
    sha256 = model_sha256(args.facts)
    workloads, repetitions = config["workloads"], config["repetitions"]
    version = version_of(args.server)
    port = args.port or free_port()
    readable = args.vocabulary or args.model
    context = context_for(workloads, readable)

    def running(draft: int = 0) -> AbstractContextManager[Server]:
        """A server with drafts of this length."""
        words = command_of(
            args.server,
            args.model,
            port=port,
            context=context,
            threads=args.threads,
            offload=offload.chosen(),
            fitting=partial(fitting, args.model, context),
            draft=draft,
        )
        return serving(words, port, args.patience)

    load = os.getloadavg()[0]
    log.say(f"{version}: started; it may be silent for {args.patience:g} s")
    with Vocabulary(readable) as vocabulary:
        with Watch() as watch, running() as server:
            log.say(f"{version} answers")
            with watch.sampling():
                rows = measured(server, vocabulary, workloads, repetitions, log).workloads
        report: Served = {
            "server": version,
            "workloads": rows,
            "gpu": watch.report(),
            "threads": args.threads,
            "machine": machine(load),
            "model_sha256": sha256,
        }
        if "draft" in config:
            report["drafts"] = []
            for length in config["draft"] if read_header(args.model, data=False).has_mtp else []:
                with running(length) as server:
                    made = measured(server, vocabulary, workloads, repetitions, log, f"drafts of {length}")
                if not made.drafted:
                    what = f"counts no drafted tokens with drafts of {length}"
                    raise QuantmillError(what, args.server, "name a newer llama-server, or leave out `draft`")
                report["drafts"].append(
                    {
                        "length": length,
                        "drafted": made.drafted,
                        "accepted": made.accepted,
                        "workloads": made.workloads,
                    }
                )
    SERVED.write(args.out, report)
    drafting = [(one["length"], one["workloads"]) for one in report.get("drafts", [])]
    for draft, entries in [(0, rows), *drafting]:
        for entry in entries:
            rates_of = (entry["prefill"], entry["decode"])
            speeds = " and ".join(f"{rate['mean']:.2f} +/- {rate['sd']:.2f}" for rate in rates_of)
            drafts = f", drafts of {draft}" if draft else ""
            log.say(f"{entry['name']}{drafts}: prefill and decode {speeds} tokens/s")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to serve")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument(
        "--server", type=Path, nargs="?", help="a llama-server (default: llama-cpp-python's)"
    )
    arguments.add_argument(
        "--vocabulary", type=Path, nargs="?", help="the source, where llama.cpp cannot open the file"
    )
    arguments.add_argument("--port", type=int, help="a port of loopback (default: a free one)")
    arguments.add_argument("--patience", type=float, default=3600.0, help="seconds to wait for its next word")
    arguments.add_argument("--out", type=Path, required=True, help="served.json")
    command.run(arguments, main)
