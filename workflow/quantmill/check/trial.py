"""Whether an engine loads a GGUF, and answers: tried in a process of its own, for native code may abort.

`python -m quantmill.check.trial` is that process: it takes one line of JSON and gives one back. Files are
mapped and not read ahead, weights are not repacked, and a context is a few tokens long, so that trying a
file costs no more memory than any reader of it.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from quantmill import signals
from quantmill.errors import QuantmillError
from quantmill.formats.checks import CheckedAnswer, RoundTrip

TOKENS: Final = 8
"""How many tokens are evaluated."""

_PREFIX: Final = re.compile(r"^[\w:~]+:(\s+|$)")  # the function that says it
_SHOWN: Final = 8


class Process:
    """A process in which one file is tried. It starts at once, so that it is ready when the file is.

    `engine` is `mainline` or `ik`. As a context manager it ends with the block, a file tried or not.
    """

    def __init__(self, engine: str = "mainline") -> None:
        self._engine = engine
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quantmill.check.trial", engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )

    def load(self, path: Path, answers: str, *, threads: int = 1) -> list[str]:
        """Load a GGUF (the first part of a split one) and evaluate a few tokens; the lines of warnings.

        `answers` is what must come of them: `logits` or `embeddings`; where it is empty the header is
        loaded and no more. QuantmillError, with the engine's own words, where it does not load, fails,
        or gives what is not finite.
        """
        return list(self._done({"path": str(path), "answers": answers, "threads": threads})["warnings"])

    def ask(self, path: Path, question: str, *, threads: int = 1) -> tuple[RoundTrip, CheckedAnswer]:
        """Have llama.cpp answer a question; whether texts come back from the file's tokens, and the answer.

        QuantmillError as of `load`.
        """
        done = self._done({"path": str(path), "question": question, "threads": threads})
        return done["tokenizer"], done["answer"]

    def _done(self, request: dict[str, Any]) -> dict[str, Any]:
        output, complaint = self._process.communicate(json.dumps(request))
        if self._process.returncode == 0:
            done: dict[str, Any] = json.loads(output)
            if "error" in done:
                raise QuantmillError(done["error"])
            return done
        message = signals.last_words(complaint) or "no reason given"
        name = {"mainline": "llama.cpp", "ik": "ik_llama.cpp"}[self._engine]
        raise QuantmillError(f"{name}, loading it, {signals.how(self._process.returncode)} ({message})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with self._process:  # waits, and closes the pipes
            pass


def header(path: Path) -> list[str]:
    """Load all of a GGUF in llama.cpp but its weights' data: what llama.cpp warned of.

    QuantmillError, with llama.cpp's own words, where it does not load.
    """
    with Process() as process:
        return warnings(process.load(path, ""))


def warnings(output: Iterable[str]) -> list[str]:
    """What llama.cpp warned of, each once: banners joined to what they are about, and of lines that differ
    in numbers and quoted words alone the first.
    """
    lines: list[str] = []
    for text in (" ".join(_PREFIX.sub("", line).split()) for line in output):
        if lines and re.fullmatch(r"[^a-z]*[A-Z][^a-z]*", text):
            lines[-1] += f" {text}" if lines[-1].endswith("!") else f". {text}"
        elif re.search(r"\w", text):
            lines.append(text)
    alike: dict[str, list[str]] = {}
    for text in lines:
        alike.setdefault(re.sub(r"'[^']*'|\S*\d\S*", "#", text), []).append(text)
    return [
        same[0] + (f" (and {len(same) - 1} more like it)" if same[1:] else "") for same in alike.values()
    ][:_SHOWN]


def _answer_ik(path: Path, answers: str, threads: int) -> None:
    """Load a file in ik_llama.cpp, and evaluate a few tokens where logits are needed."""
    from quantmill.engine import loader

    with loader.load(path, context=TOKENS, batch=TOKENS, threads=threads) as model:
        if not answers:
            return
        tokens = np.linspace(0, model.vocab_size - 1, TOKENS).astype(np.int32)
        tokens[0] = model.bos or 0
        model.decode(tokens, 0, TOKENS - 1)
        if not np.isfinite(model.logits(1)).all():
            raise QuantmillError("ik_llama.cpp computes logits of it that are not finite")


def _ask(path: Path, question: str, threads: int) -> dict[str, Any]:
    from quantmill.check.answer import answer, round_trip
    from quantmill.engine.vocabulary import Vocabulary

    with Vocabulary(path) as vocabulary:
        return {
            "tokenizer": round_trip(vocabulary),
            "answer": answer(path, vocabulary, question, threads),
        }


def main() -> None:
    """The process of one trial: ready, it waits for a line of JSON, and gives one back."""
    from quantmill.engine import library

    path = Path()
    try:
        library.use(sys.argv[1])
        ready = importlib.import_module(f"quantmill.engine.{sys.argv[1]}")
        text = sys.stdin.read()
        if not text:  # whoever started it is gone
            return
        request = json.loads(text)
        path, threads = Path(request["path"]), request["threads"]
        done: dict[str, Any] = {"warnings": []}
        if "question" in request:
            done = _ask(path, request["question"], threads)
        elif library.in_use() == "ik":
            _answer_ik(path, request["answers"], threads)
        else:
            done["warnings"] = ready.probe(path, request["answers"], tokens=TOKENS, threads=threads)
    except QuantmillError as error:
        # Without the file, which the caller names, and without a cure, which the caller knows better.
        done = {"error": str(error).removeprefix(f"{path}: ").removesuffix("; check the file")}
    json.dump(done, sys.stdout)


if __name__ == "__main__":
    main()
