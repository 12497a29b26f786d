"""Answers that are kept: each is a unit of the store, generated once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantmill.engine.generate import Answer, Generator
from quantmill.engine.mainline import Tokens
from quantmill.progress import Log
from quantmill.spec import canonical
from quantmill.store import Store
from quantmill.versions import VERSIONS


def generated(
    stage: str, path: Path, prompts: Sequence[Tokens], settings: dict[str, Any], *,
    identity: dict[str, Any], threads: int, store: Store, log: Log,
) -> list[Answer]:  # fmt: skip
    """The answers to `prompts`, in order, from the store or generated.

    `settings` are `max_tokens`, `stop` (texts) and `parallel`; `identity` is what,
    beside these and the prompt, determines an answer (the engine's digest and the
    model's sha256). The model is loaded only if an answer is missing.
    """

    def key(prompt: Tokens) -> str:
        tokens = hashlib.sha256(prompt.astype("<i4").tobytes()).hexdigest()
        return Store.key(stage, VERSIONS[stage], prompt=tokens, **settings, **identity)

    keys = [key(prompt) for prompt in prompts]
    found: dict[int, Answer] = {}
    for number, unit in enumerate(map(store.get, keys)):
        if unit is not None:
            found[number] = Answer(number, **json.loads(bytes(unit)))
    missing = [number for number in range(len(prompts)) if number not in found]
    store.reused += len(found)
    with log.progress("answers", len(prompts), "problems") as progress:
        progress.add(len(found))
        if missing:
            context = max(len(prompts[number]) for number in missing) + settings["max_tokens"]
            with Generator(
                path, context=context, parallel=settings["parallel"], threads=threads
            ) as generator:
                asked = [prompts[number] for number in missing]
                for answer in generator.answers(asked, settings["max_tokens"], settings["stop"]):
                    answer.number = missing[answer.number]
                    found[answer.number] = answer
                    kept = {name: value for name, value in asdict(answer).items() if name != "number"}
                    store.put(keys[answer.number], canonical(kept).encode())
                    store.made += 1
                    progress.add(1)
    return [found[number] for number in range(len(prompts))]
