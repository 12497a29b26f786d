"""Tasks of EleutherAI's lm-eval: it asks and scores, the engine answers.

lm-eval is an extra (`make evals`) and imported by this stage alone. What a model
finds likely and what it generates are units of the store.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from quantmill import command
from quantmill.engine.generate import Tokens
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.evaluate.likelihood import STAGE, Likelihoods, Request, windows
from quantmill.evaluate.prompting import Generation, Prompter, generated, trained_context
from quantmill.formats import settings
from quantmill.formats.measurements import TASKS, Task
from quantmill.formats.measurements import Tasks as TasksReport
from quantmill.formats.publication import model_sha256
from quantmill.measure.placed import noted
from quantmill.progress import Log
from quantmill.store import Identity, Store

_MAX_TOKENS: Final = 256  # lm-eval's own default
_PARALLEL: Final = 8


class Engine:
    """What lm-eval calls of a model. QuantmillError where chat is on and the model has no template."""

    def __init__(
        self,
        path: Path,
        vocabulary: Vocabulary,
        likelihoods: Likelihoods,
        *,
        chat: bool,
        threads: int,
        identity: Identity,
        store: Store,
        log: Log,
    ) -> None:
        self.prompter = Prompter(path, vocabulary, chat=chat, variables={})
        self._path, self._vocabulary, self._likelihoods, self._chat = path, vocabulary, likelihoods, chat
        self._threads, self._identity, self._store, self._log = threads, identity, store, log
        first = vocabulary.special("bos") or vocabulary.special("eos")
        self._first = vocabulary.tokenize(first, parse_special=True)[:1]

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether it is what greedy decoding gives."""
        requests = [self._pair(context, continuation) for context, continuation in pairs]
        with self._log.progress("likelihoods", len(requests), "requests") as progress:
            return list(self._likelihoods.of(requests, progress))

    def rolling(self, texts: Sequence[str]) -> list[float]:
        """ln p of each whole text."""
        parts = [list(windows(self._tokens(text), self._first, self._likelihoods.context)) for text in texts]
        with self._log.progress("texts", sum(map(len, parts)), "requests") as progress:
            values = self._likelihoods.of([request for part in parts for request in part], progress)
            return [sum(next(values)[0] for _ in part) for part in parts]

    def generate(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """The greedy answer to each text, by lm-eval's arguments (`until`, `max_gen_toks`)."""
        limits = [_generation(arguments) for _, arguments in requests]
        answers: dict[int, str] = {}
        order = sorted(range(len(requests)), key=lambda i: limits[i])
        for (most, until), group in groupby(order, key=lambda i: limits[i]):
            numbers = list(group)
            room = max(1, self._likelihoods.context - most)
            prompts = [self.prompter.with_bos(self._tokens(requests[i][0]))[-room:] for i in numbers]
            options: Generation = {"max_tokens": most, "stop": list(until), "parallel": _PARALLEL}
            generations = generated(
                STAGE,
                self._path,
                prompts,
                options,
                identity=self._identity,
                threads=self._threads,
                store=self._store,
                log=self._log,
            )
            answers |= {i: answer.text for i, answer in zip(numbers, generations, strict=True)}
        return [answers[i] for i in range(len(requests))]

    def _tokens(self, text: str) -> Tokens:
        return self._vocabulary.tokenize(text, parse_special=self._chat)

    def _pair(self, context: str, continuation: str) -> Request:
        """The tokens of both, split where the context's own end: as lm-eval does it.

        Spaces at its end go to the continuation, for tokens begin with theirs.
        """
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        if not stripped:
            return Request(self._first, self._tokens(continuation))
        before = self.prompter.with_bos(self._tokens(stripped))
        whole = self.prompter.with_bos(self._tokens(stripped + continuation))
        end = min(len(before), len(whole) - 1)
        if end < 1:
            return Request(self._first, whole)
        return Request(whole[:end], whole[end:])


def adapter(engine: Engine) -> Any:
    """The engine as an `lm_eval.api.model.LM`."""
    from lm_eval.api.model import LM

    class EngineLM(LM):
        tokenizer_name = "gguf"

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return engine.loglikelihood([request.args for request in requests])

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return engine.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any]) -> list[str]:
            return engine.generate([request.args for request in requests])

        def apply_chat_template(
            self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return engine.prompter.render(chat_history, answer=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return ""

    return EngineLM()


def evaluate(engine: Engine, config: settings.Tasks) -> dict[str, Any]:
    """lm-eval's results for the tasks named in `config`; those of the folder `include` come first."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    import lm_eval
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    include = config["include"] and str(Path(config["include"]).resolve())
    manager = TaskManager(include_path=include, include_defaults=False) if include else None
    if manager is None or set(config["names"]) - set(manager.all_tasks):
        manager = TaskManager(include_path=include)
    if unknown := sorted(set(config["names"]) - set(manager.all_tasks)):
        cure = "`lm-eval ls tasks` lists lm-eval's own; name a folder of others with include:"
        raise QuantmillError(f"no task {', '.join(unknown)}", "bench.tasks.names", cure)
    # a task's own file names its data; those names are relative to where it lies
    with chdir(include) if include else nullcontext(), _explaining(config["names"]):
        results = lm_eval.simple_evaluate(
            model=adapter(engine),
            tasks=config["names"],
            num_fewshot=config["shots"],
            limit=config["limit"],
            task_manager=manager,
            apply_chat_template=config["chat"],
            bootstrap_iters=1000,
        )
    return dict(results)


@contextmanager
def _explaining(names: list[str]) -> Iterator[None]:
    """A task that lm-eval cannot run is an error in one line: it may raise anything over one."""
    try:
        yield
    except (QuantmillError, KeyboardInterrupt):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        cure = "put the task right, or leave it out"
        raise QuantmillError(
            f"lm-eval cannot run {', '.join(names)} ({message[:300]})", "bench.tasks", cure
        ) from error


def rows(results: dict[str, Any]) -> list[Task]:
    """One row for each task and metric of lm-eval's results."""
    written: list[Task] = []
    for name, values in results["results"].items():
        for key, value in values.items():
            metric, _, way = key.partition(",")
            if not way or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{way}")
            samples = results["n-samples"].get(name, {}).get("effective")
            written.append(
                {
                    "name": name,
                    "metric": metric if way == "none" else f"{metric} ({way})",
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None,
                    "samples": samples if samples is not None else values.get("sample_len"),
                    "chance": chance(results, name) if metric in ("acc", "acc_norm") else None,
                }
            )
    return written


def chance(results: dict[str, Any], name: str) -> float | None:
    """The share that guessing gets right, where the task is multiple choice: one of the choices of each."""
    samples = results.get("samples", {}).get(name, [])
    if results["configs"].get(name, {}).get("output_type") != "multiple_choice" or not samples:
        return None
    return fmean(1 / len(sample["resps"]) for sample in samples)


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `evaluate.tasks`."""
    config: settings.Tasks = args.spec["config"]
    sha256 = model_sha256(args.facts)
    log.path = log.path and log.path.resolve()
    model, out, args.store = args.model.resolve(), args.out.resolve(), args.store.resolve()
    store = command.store(args, log)
    identity = {"engine": args.spec["engine"], "model": sha256}
    context = min(config["context"], trained_context(model) or config["context"])
    with ExitStack() as stack:
        vocabulary = stack.enter_context(Vocabulary(model))
        likelihoods = stack.enter_context(
            Likelihoods(model, context=context, threads=args.threads, identity=identity, store=store)
        )
        engine = Engine(
            model,
            vocabulary,
            likelihoods,
            chat=config["chat"],
            threads=args.threads,
            identity=identity,
            store=store,
            log=log,
        )
        scores = rows(evaluate(engine, config))
    written: TasksReport = {"tasks": scores, "settings": config, "model_sha256": sha256}
    if places := noted(store, STAGE, identity):
        written["devices"] = places
    TASKS.write(out, written)
    for row in scores:
        log.say(f"{row['name']}: {row['metric']} {row['value']:.4f} of {row['samples']}")
    log.say(f"{store.made} units made, {store.reused} reused")


def _generation(arguments: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """(tokens at most, stop strings) of lm-eval's arguments. QuantmillError where they are to be sampled."""
    if arguments.get("do_sample") or arguments.get("temperature"):
        raise QuantmillError(
            "a task samples its answers",
            "bench.tasks.names",
            "generation is greedy here: set do_sample: false in the task",
        )
    until = arguments.get("until") or []
    stops = [until] if isinstance(until, str) else until
    return int(arguments.get("max_gen_toks", _MAX_TOKENS)), tuple(stops)


if __name__ == "__main__":
    stage = command.parser(__doc__, threads=True, store=True, evaluates=True)
    stage.add_argument("--model", type=Path, required=True, help="the GGUF to evaluate")
    stage.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    stage.add_argument("--out", type=Path, required=True, help="tasks.json")
    command.run(stage, main)
