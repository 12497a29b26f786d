"""What the quantized weights of a layer do to the inputs of those after them, for `rounding: gptaq`.

The weights that end one half of a layer (attn_output, ffn_down and their kin) get inputs that those before
them made: once these are quantized, theirs is x̃ in place of x. Rounded so that they give for x̃ what the
original gave for x, they make up for the errors before them. That takes the second moments of x̃ and the
cross moments Σ (x - x̃) x̃ᵀ (GPTAQ, Li et al., 2025, whose inputs carry the errors of all layers before).

Both models evaluate the same text side by side. What enters a half of a layer, the quantized model gets from
the original (the nodes' values are replaced), so that x̃ has the errors of its own half alone. So one run
serves all layers: no input depends on how the layers before it are rounded.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from quantmill import command
from quantmill.engine.evaluator import Tokens
from quantmill.errors import QuantmillError
from quantmill.files import part_of
from quantmill.formats import ggufio
from quantmill.formats.cross import CROSS
from quantmill.formats.cross import Cross as Report
from quantmill.formats.moments import MOMENTS
from quantmill.formats.publication import FACTS, Facts
from quantmill.formats.settings import Chunks
from quantmill.formats.types import FED_BACK
from quantmill.measure.moments import listed
from quantmill.measure.outer import Input
from quantmill.measure.passes import Passes, evaluate, loaded
from quantmill.measure.score import load_chunks
from quantmill.measure.shifts import Originals, Shifted, Shifts
from quantmill.model.roles import layer_of, role_of
from quantmill.progress import Log
from quantmill.spec import digest
from quantmill.store import Identity, Store

STAGE: Final = "measure.cross"

TOKENS: Final = 32_768
"""The most that are used, of the chunks of the second moments: a file's own measurement is to be short."""

LATE: Final = frozenset(
    [
        "attn_output",
        "attn_o",
        "ssm_out",
        "shortconv.out_proj",
        "time_mix_output",
        "channel_mix_value",
        "ffn_down",
        "ffn_down_exps",
        "ffn_down_shexp",
        "ffn_down_chexps",
    ]
)
"""The roles of the weights that end a half of a layer."""


class Cross(Passes[Shifted]):
    """The cross moments of the inputs that end the halves of layers, of a quantized file beside its source.

    `every` are the inputs of the model's graph, `header` that of the file. Those are measured whose weights
    are to be rounded with error feedback.
    """

    stage, words, unit = STAGE, "cross moments", Shifted

    def __init__(
        self,
        source: Path,
        header: ggufio.Header,
        chunks: Tokens,
        every: Sequence[Input],
        *,
        identity: Identity,
        store: Store,
        threads: int,
        log: Log,
    ) -> None:
        late, self._first = late_and_first(every, header)
        super().__init__(source, chunks, late, identity=identity, store=store, threads=threads, log=log)
        self._every, self._quantized, self._made_by = list(every), header.shards[0], made_by(header)

    def size(self, one: Input) -> int:
        """See `Passes`: the sums of both kinds, and the rows of a batch."""
        return 2 * one.bytes + 8 * one.columns * self.chunks.shape[1]

    def identity_of(self, one: Input) -> Identity:
        """See `Passes`."""
        return {**super().identity_of(one), "quantized": self._made_by[layer_of(one.name)]}

    @contextmanager
    def started(
        self, inputs: Sequence[Input], pool: Executor
    ) -> Iterator[tuple[Shifts, Callable[[Tokens], None]]]:
        """See `Passes`. QuantmillError where llama.cpp's graph does not take what it is given."""
        layers = {layer_of(one.name) for one in inputs}
        first = [one for one in self._first if layer_of(one.name) in layers]
        originals = Originals([one for one in self._every if one in first or one in inputs])
        shifts = Shifts(inputs, first, originals, pool)
        context = self.chunks.shape[1]
        with (
            loaded(self.path, context, self.threads, originals) as source,
            loaded(self._quantized, context, self.threads, shifts, shifts.values) as quantized,
        ):

            def add(chunk: Tokens) -> None:
                evaluate(chunk, source, quantized)
                missed = [one.name for one in first if one.name not in shifts.replaced]
                if missed:
                    what = f"llama.cpp's graph does not show what computes the input of {missed[0]}"
                    raise QuantmillError(what, self.path, "use `rounding: gptq` for this model")

            yield shifts, add


def late_and_first(every: Sequence[Input], header: ggufio.Header) -> tuple[list[Input], list[Input]]:
    """Of a model's inputs those of the weights that end a half of a layer and that its file rounds, and those
    that enter a half.

    What enters has the width of the embeddings. A layer without such an input is left out.
    """
    types = {tensor.name: tensor.type for tensor in header.tensors}
    width = every[0].columns  # what enters the first layer
    first = [one for one in every if one.columns == width and _in_layer(one) and not _is_late(one)]
    layers = {layer_of(one.name) for one in first}
    rounded = [one for one in every if any(types.get(weight) in FED_BACK for weight in one.weights)]
    return [one for one in rounded if _is_late(one) and layer_of(one.name) in layers], first


def _is_late(one: Input) -> bool:
    return role_of(one.name) in LATE


def _in_layer(one: Input) -> bool:
    return layer_of(one.name) >= 0


def made_by(header: ggufio.Header) -> dict[int, str]:
    """Of each layer a digest of the weights that the inputs of those that end its halves depend on."""
    digests: dict[int, str] = {}
    for tensor in sorted(header.tensors, key=lambda tensor: tensor.name):
        layer = layer_of(tensor.name)
        if layer < 0 or role_of(tensor.name) in LATE:
            continue
        data = part_of(header.shards[tensor.shard], tensor.offset, tensor.bytes)
        own = [digests.get(layer, ""), tensor.name, tensor.type, hashlib.sha256(data).hexdigest()]
        digests[layer] = digest(own)
    return digests


class Known:
    """The cross moments that a report lists, from the store alone."""

    def __init__(self, where: Path, store: Store) -> None:
        self._where, self._store = where, store
        listed = CROSS.read(where)["inputs"]
        self._of = {weight: one for one in listed for weight in one["weights"]}

    def __contains__(self, weight: str) -> bool:
        return weight in self._of

    def key(self, weight: str) -> str:
        """The key of the unit of a weight's input."""
        return self._of[weight]["key"]

    def of(self, weight: str) -> Shifted:
        """The cross moments of a weight's input. QuantmillError where the store has lost them."""
        unit = self._store.get(self.key(weight))
        if unit is None:
            what = "the store has lost its cross moments"
            raise QuantmillError(
                what, self._where, "delete it to have it made again, and give the store more room"
            )
        return Shifted.from_bytes(unit)


def report_of(cross: Cross, facts: Facts) -> Report:
    """The report, of cross moments that are measured."""
    return {
        "quantized": facts["sha256"],
        "inputs": [cross.listed(one) for one in cross.inputs],
        "bytes": sum(2 * one.bytes for one in cross.inputs),
        "seconds": round(cross.seconds, 3),
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.cross`."""
    config: Chunks = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    read = MOMENTS.read(args.moments)
    identity: Identity = {"engine": read["engine"], "model": read["model"]}
    every = listed(read, args.moments, chunks, ggufio.read_header(args.model), identity)
    store = command.store(args, log)
    header = ggufio.read_header(args.quantized)
    chunks = chunks[: max(1, TOKENS // config["context"])]
    cross = Cross(
        args.model, header, chunks, every, identity=identity, store=store, threads=args.threads, log=log
    )
    cross.measure()
    CROSS.write(args.report, report_of(cross, FACTS.read(args.facts)))
    stored = len(cross.inputs) - cross.measured
    log.say(
        f"the cross moments of {len(cross.inputs)} inputs; {cross.measured} measured, {stored} from the store"
    )


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--quantized", type=Path, required=True, help="the file of rounding gptq")
    arguments.add_argument("--facts", type=Path, required=True, help="JSON with its sha256")
    arguments.add_argument("--moments", type=Path, required=True, help="moments.json")
    arguments.add_argument("--corpus", type=Path, required=True, help="the corpus that they are of (parquet)")
    arguments.add_argument("--report", type=Path, required=True, help="JSON with what was measured")
    command.run(arguments, main)
