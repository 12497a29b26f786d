"""HumanEval: a model writes functions, greedily; each is run against its tests, in a sandbox.

An answer is a unit of the store. It depends on the model, the prompt
and the settings alone (see `engine.generate`), so that a killed run goes on
with the problem where it stood, and gives what an unbroken one gives. The
tests are cheap and run again each time.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.engine.generate import Answer
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.evaluate import sandbox
from quantmill.evaluate.answers import code_of, is_fenced, is_repetition, is_verbatim, strip_thinking, wilson
from quantmill.evaluate.problems import Problem, read
from quantmill.evaluate.prompting import Generation, Prompter, generated, trained_context
from quantmill.files import write_text
from quantmill.formats import settings
from quantmill.formats.measurements import HUMANEVAL, HumanEval, HumanEvalSettings, Sample
from quantmill.formats.publication import model_sha256
from quantmill.measure.placed import noted
from quantmill.progress import Log

STAGE: Final = "evaluate.humaneval"
_ADDRESS: Final = re.compile(r"0x[0-9a-f]{6,}")


def check_limits(problem: Problem, limits: sandbox.Limits, *, confined: bool) -> None:
    """Refuse limits in which even the authors' own solution does not finish."""
    verdict = sandbox.run(problem.program(problem.solution), limits, confined=confined)
    if verdict.kind in ("timeout", "limits"):
        why = f"{verdict.kind}: {verdict.message}"
        what = f"the limits are too tight for {problem.task_id}'s own solution ({why})"
        raise QuantmillError(what, "bench.humaneval", "raise seconds or memory")


def samples(
    problems: Sequence[Problem],
    answers: Sequence[Answer],
    limits: sandbox.Limits,
    *,
    chat: bool,
    confined: bool,
    threads: int,
    log: Log,
) -> list[Sample]:
    """Each answer with its code, the result of running it, and the audits."""

    def sample(problem: Problem, answer: Answer) -> Sample:
        code = code_of(answer.text, problem, chat=chat)
        verdict = sandbox.run(problem.program(code), limits, confined=confined)
        passed = verdict.kind == "passed"
        progress.add(1)
        return {
            "task_id": problem.task_id,
            "answer": answer.text,
            "code": code,
            "passed": passed,
            "result": verdict.kind,
            "message": _ADDRESS.sub("0x...", verdict.message),
            "tokens": len(answer.tokens),
            "empty": not strip_thinking(answer.text).strip(),
            "fenced": is_fenced(answer.text),
            "verbatim": passed and is_verbatim(code, problem),
            "cut_off": not answer.ended,
            "repetition": is_repetition(answer.tokens),
        }

    with log.progress("tests", len(problems), "problems") as progress, ThreadPoolExecutor(threads) as pool:
        return list(pool.map(sample, problems, answers))


def settings_of(config: settings.HumanEval, file: str, confined: bool) -> HumanEvalSettings:
    """The settings as the report repeats them."""
    return {
        "limit": config["limit"],
        "max_tokens": config["max_tokens"],
        "prompt": config["prompt"],
        "instruction": config["instruction"],
        "template": config["template"],
        "stop": config["stop"],
        "parallel": config["parallel"],
        "seconds": config["seconds"],
        "memory": config["memory"],
        "file": file,
        "confined": confined,
    }


def report(
    rows: Sequence[Sample], answers: Sequence[Answer], settings: HumanEvalSettings, model: str
) -> HumanEval:
    """The JSON of one file: pass@1 with its interval, the audits, the kinds of failure.

    The rate is of generating alone, as llama-bench's: the time of the prompts stands beside it.
    """
    passed, tokens = sum(row["passed"] for row in rows), sum(row["tokens"] for row in rows)
    seconds = sum(answer.seconds for answer in answers)
    results = Counter(row["result"] for row in rows)
    return {
        "problems": len(rows),
        "passed": passed,
        "pass_at_1": passed / len(rows),
        "interval": list(wilson(passed, len(rows))),
        "audits": {
            "empty": sum(row["empty"] for row in rows),
            "fenced": sum(row["fenced"] for row in rows),
            "verbatim": sum(row["verbatim"] for row in rows),
            "cut_off": sum(row["cut_off"] for row in rows),
            "repetition": sum(row["repetition"] for row in rows),
        },
        "failures": {
            "wrong": results["wrong"],
            "syntax": results["syntax"],
            "error": results["error"],
            "timeout": results["timeout"],
            "limits": results["limits"],
        },
        "generated_tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 2) if seconds > 0 else 0.0,
        "seconds": round(seconds, 3),
        "prompt_seconds": round(sum(answer.prompt_seconds for answer in answers), 3),
        "settings": settings,
        "model_sha256": model,
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `evaluate.humaneval`."""
    config: settings.HumanEval = args.spec["config"]
    sha256 = model_sha256(args.facts)
    chat = config["prompt"] == "chat"
    problems = read(args.problems, config["limit"])
    limits = sandbox.Limits(config["seconds"], config["memory"])
    confined = sandbox.check(accept_unsandboxed=config["accept_unsandboxed"])
    if not confined:
        log.warn(["generated code runs unconfined, as accept_unsandboxed allows"])
    check_limits(problems[0], limits, confined=confined)
    with Vocabulary(args.model) as vocabulary:
        prompter = Prompter(args.model, vocabulary, chat=chat, variables=config["template"])
        questions = (
            f"{config['instruction']}\n\n```python\n{p.prompt}```" if chat else p.prompt for p in problems
        )
        prompts = [prompter.tokens(text) for text in questions]
    most, trained = max(map(len, prompts)) + config["max_tokens"], trained_context(args.model)
    if trained is not None and most > trained:
        what = f"{most} tokens of prompt and answer pass the model's context of {trained}"
        raise QuantmillError(what, "bench.humaneval.max_tokens", f"lower it by {most - trained}")
    store = command.store(args, log)
    identity = {"engine": args.spec["engine"], "model": sha256}
    generation: Generation = {
        "max_tokens": config["max_tokens"],
        "stop": config["stop"],
        "parallel": config["parallel"],
    }
    answers = generated(
        STAGE,
        args.model,
        prompts if args.shard is None else args.shard.of(prompts),
        generation,
        identity=identity,
        threads=args.threads,
        store=store,
        log=log,
    )
    if args.shard is not None:
        return
    rows = samples(problems, answers, limits, chat=chat, confined=confined, threads=args.threads, log=log)
    written = report(rows, answers, settings_of(config, args.problems.name, confined), sha256)
    if places := noted(store, STAGE, identity):
        written["devices"] = places
    lines = (json.dumps(row, ensure_ascii=False, sort_keys=True) for row in rows)
    write_text(args.samples, "".join(f"{line}\n" for line in lines))
    HUMANEVAL.write(args.out, written)
    passed = f"{written['passed']} of {written['problems']}"
    log.say(f"pass@1 {passed}; {store.made} answers generated, {store.reused} reused")


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the GGUF to evaluate")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--problems", type=Path, required=True, help="the problems (JSONL, or gzipped)")
    arguments.add_argument("--out", type=Path, required=True, help="humaneval.json")
    arguments.add_argument("--samples", type=Path, required=True, help="humaneval.jsonl")
    command.run(arguments, main)
