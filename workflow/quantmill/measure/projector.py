"""How far a multimodal projector's vectors of pictures and sounds are from the source's, by libmtmd.

No language model is needed: the projector's output is what the language model reads in place of tokens.
The vectors of each picture or sound are a unit of the store. Where a question is asked, the language model
answers it too (`measure.answers`).
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.engine.projector import Projector
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.media import Media
from quantmill.formats.projected import PROJECTED, Projected
from quantmill.formats.publication import model_sha256
from quantmill.measure import answers
from quantmill.measure.embeddings import distance
from quantmill.measure.statistics import Numbers, distribution, mean
from quantmill.progress import Log
from quantmill.spec import file_sha256
from quantmill.stages import VERSIONS
from quantmill.store import Identity, Store

STAGE: Final = "measure.projector"

Vectors = NDArray[np.float32]


def measure(
    path: Path,
    media: list[Path],
    *,
    identity: Identity,
    threads: int,
    store: Store,
    log: Log,
    beside: Path | None = None,
) -> tuple[list[Vectors], float]:
    """The vectors [n, width] of each picture or sound, and the seconds taken; `beside` as of `Projector`.

    The projector is loaded only if a unit is missing.
    """
    with ExitStack() as stack:
        header = read_header(path, data=False)

        @cache
        def loaded() -> Projector:
            return stack.enter_context(Projector(path, header, threads, beside))

        def make(medium: Path) -> bytes:
            start = time.monotonic()
            vectors = loaded().embed(medium)
            if not np.isfinite(vectors).all():
                cure = "the file is damaged, or its types are too small for it"
                raise QuantmillError(f"gives vectors of {medium.name} that are not finite", path, cure)
            head = np.array([time.monotonic() - start, vectors.shape[1]], np.float64)
            return head.tobytes() + vectors.tobytes()

        progress = stack.enter_context(log.progress("projector", len(media), "pictures and sounds"))
        made = []
        for medium in media:
            key = Store.key(STAGE, VERSIONS[STAGE], medium=file_sha256(medium), **identity)
            made.append(bytes(store.get_or_make(key, lambda medium=medium: make(medium), leased=True)))  # type: ignore[misc]
            progress.add(1)
    heads = [np.frombuffer(unit, np.float64, 2) for unit in made]
    vectors = [
        np.frombuffer(unit, np.float32, offset=16).reshape(-1, int(head[1]))
        for unit, head in zip(made, heads, strict=True)
    ]
    return vectors, float(sum(head[0] for head in heads))


def relative_errors(ours: Vectors, theirs: Vectors) -> Numbers:
    """The length of what a file changes of each vector, over the length of the source's [n]."""
    lengths = np.linalg.norm(theirs.astype(np.float64), axis=1)
    changes = np.linalg.norm(ours.astype(np.float64) - theirs, axis=1)
    return np.asarray(changes / np.where(lengths > 0, lengths, 1))


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.projector`."""
    config: Media = args.spec["config"]
    sha256 = {"model": model_sha256(args.facts), "reference": model_sha256(args.reference_facts)}
    store = command.store(args, log)
    made: dict[str, list[Vectors]] = {}
    seconds = 0.0
    for name, path in (("reference", args.reference), ("model", args.model)):
        identity = {
            "engine": args.spec["engine"],
            "mtmd": args.spec["from"]["mtmd"],
            "model": sha256[name],
            **({"beside": args.spec["from"]["language_model"]} if args.language_model else {}),
        }
        made[name], seconds = measure(
            path,
            args.media,
            identity=identity,
            threads=args.threads,
            store=store,
            log=log,
            beside=next(iter(args.language_model or []), None),
        )
    theirs, ours = (np.concatenate(made[name]) for name in ("reference", "model"))
    if ours.shape != theirs.shape:
        what = f"gives {len(ours)} vectors of {ours.shape[1]} values, the source {len(theirs)} of "
        what += f"{theirs.shape[1]}: it is another model's projector"
        raise QuantmillError(what, args.model, "compare it with the model that it was made from")
    distances = distance(ours, theirs, ranks=False)
    report: Projected = {
        "media": [
            {"file": name, "vectors": len(vectors)}
            for name, vectors in zip(config["media"], made["reference"], strict=True)
        ],
        "width": theirs.shape[1],
        "distance": distribution(distances),
        "relative_error": mean(relative_errors(ours, theirs)),
        "by_vector": distances.tolist(),
        "seconds": round(seconds, 3),
        "model_sha256": sha256["model"],
        "reference_sha256": sha256["reference"],
    }
    answered = ""
    if asked := config.get("question"):
        start = time.monotonic()
        identity = {"engine": args.spec["engine"], **args.spec["from"]} | {"reference": sha256["reference"]}
        report["answer"] = answers.measure(
            answers.Asked(
                asked,
                args.language_model[0],
                args.reference,
                {name: identity[name] for name in ("engine", "mtmd", "language_model", "reference")},
                args.threads,
            ),
            args.media,
            made["reference"],
            made["model"],
            model=sha256["model"],
            store=store,
            log=log,
        )
        report["seconds"] = round(seconds + time.monotonic() - start, 3)
        answered = f"KL divergence of the answers {report['answer']['kld']['mean']:.3g}; "
    PROJECTED.write(args.out, report)
    log.say(
        f"distance {report['distance']['mean']:.3g}, relative error {report['relative_error']['mean']:.3g}; "
        f"{answered}{store.made} units made, {store.reused} reused"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the projector to measure")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--reference", type=Path, required=True, help="the projector to compare it with")
    arguments.add_argument("--reference-facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--media", type=Path, nargs="+", required=True, help="pictures and sounds")
    arguments.add_argument("--language-model", type=Path, nargs="*", help="the GGUF that it is for")
    arguments.add_argument("--out", type=Path, required=True, help="projector.json")
    command.run(arguments, main)
