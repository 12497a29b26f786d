"""The largest magnitude that enters each MLP weight, for a checkpoint whose activations become NVFP4 too.

What modelopt's `max` calibration finds by hooks in torch is collected here by the
eval callback, in the GGUF that the checkpoint is converted to. Where both were
run on the same tokens they differed by less than 0.1 %, the rounding of the
bf16 in which modelopt's forward pass computes (tests/data/modelopt-inputs.json).
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np

from quantmill import command
from quantmill.engine.evaluator import Tokens
from quantmill.engine.graph import MatMul
from quantmill.engine.mainline import Evaluator
from quantmill.errors import QuantmillError
from quantmill.formats.importance import ACTIVATIONS
from quantmill.formats.settings import Chunks
from quantmill.measure.saved import Saved
from quantmill.measure.score import counted, groups, load_chunks, observed
from quantmill.progress import Log, Progress
from quantmill.store import Identity, Store

STAGE = "checkpoint.calibrate"

# The routers' inputs are of no use: they are the experts' own.
_MLP = re.compile(r"blk\.\d+\.ffn_(gate|up|down|gate_up)(_exps|_shexp)?\.weight")


class Largest:
    """An observer of the engine: the largest magnitude of what enters each MLP weight.

    Of stacked experts it is that of all of them together: modelopt gives the
    experts of a layer one scale, and readers take the largest anyhow.
    """

    def __init__(self) -> None:
        self.largest_of: dict[str, float] = {}
        self._last: str | None = None

    def __call__(self, node: MatMul) -> bool:
        """The engine's observer: whether to show this node's data, then whether to go on."""
        name = node.weight
        if node.ask:
            return _MLP.fullmatch(name) is not None
        values = node.input()
        # np.maximum keeps what is no number.
        largest = np.maximum(values.max(), -values.min())
        self.largest_of[name] = float(np.maximum(self.largest_of.get(name, 0.0), largest))
        return name != self._last

    def saw_all(self) -> None:
        """A graph is done: the next ones may end where the last observed weight is, before the head."""
        self._last = next(reversed(self.largest_of), None)


def collect(model: Evaluator, largest: Largest, chunks: Tokens, progress: Progress) -> dict[str, float]:
    """By weight the largest magnitude that enters it in `chunks` [n, context].

    Every token asks for its logits, or the last layer would see some of them only.
    """
    largest.largest_of = {}
    for group in groups(chunks, model):
        model.clear()
        at_once = model.batch // len(group)
        with counted(progress, model, group):
            for first in range(0, group.shape[1], at_once):
                last = first + at_once >= group.shape[1]
                model.decode(group[:, first : first + at_once], first, discard=last)
                largest.saw_all()
    return largest.largest_of


def measure(
    path: Path, chunks: Tokens, *, identity: Identity, threads: int, store: Store, log: Log
) -> dict[str, float]:
    """The same over all chunks, in units of the store; the model is loaded only if one is missing.

    QuantmillError, naming the weight, where something that enters it is not finite.
    """
    observer = Largest()
    merged: dict[str, float] = {}

    def make(model: Evaluator, part: Tokens, _: Saved, progress: Progress) -> bytes:
        return json.dumps(collect(model, observer, part, progress)).encode()

    for unit in observed(
        STAGE, "calibrate", path, chunks, observer, identity, make, threads=threads, store=store, log=log
    ):
        for name, value in json.loads(bytes(unit)).items():
            merged[name] = float(np.maximum(merged.get(name, 0.0), value))
    for name, value in merged.items():
        if not math.isfinite(value):
            raise QuantmillError(f"non-finite activations in {name}", path, "the source is damaged")
    return merged


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `checkpoint.calibrate`."""
    config: Chunks = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    identity = {"engine": args.spec["engine"], "model": args.spec["from"]["model"]}
    store = command.store(args, log)
    activations = measure(args.model, chunks, identity=identity, threads=args.threads, store=store, log=log)
    ACTIVATIONS.write(
        args.activations,
        {
            "corpus": config["corpus"],
            "chunks": config["chunks"],
            "context": config["context"],
            "largest": activations,
        },
    )
    log.say(
        f"the largest inputs of {len(activations)} MLP weights, "
        f"{max(activations.values(), default=0):.4g} at most; "
        f"{store.made} units made, {store.reused} reused"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the checkpoint as GGUF")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--activations", type=Path, required=True, help="JSON of the largest inputs")
    command.run(arguments, main)
