"""How few probes suffice: predicted sensitivities against every choice measured.

`python benchmarks/predictors.py MODEL RESULTS --store STORE`, with RESULTS the
folder in which snakemake has made the model's manifest, imatrix and tuning
corpus. Every choice is probed, or read from the store. Then each way to use fewer
probes is scored: by rank, by log error, and by its loss. For the loss, the
allocation is solved at the tensor bytes of each preset with the predicted values.
Its cost is the sum of the measured values. The loss is its difference to the cost
of the allocation by measured values, as a share of the preset's own cost. "Same
chunks" measures and scores on all chunks. "Other chunks" measures on the first
half and scores on the second, so that luck with a few chunks is not a gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quality import PRESETS
from quantmill.config.bench import POOL
from quantmill.files import read_json
from quantmill.formats.chunks import read_chunks
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.types import tensor_bytes
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.recipe import presets
from quantmill.sensitivity import order, predict
from quantmill.sensitivity.candidates import Choice, choices
from quantmill.sensitivity.measure import error_table, table_of
from quantmill.sensitivity.session import Session
from quantmill.store import Store
from stages import THREADS, engine_digest

Values = NDArray[np.float64]
_LEAST = 1e-12


@dataclass(frozen=True)
class World:
    """A model's choices, what was measured of each [n, chunks], and the presets' types by tensor."""

    todo: list[Choice]
    table: predict.Table
    kld: Values
    mixtures: dict[str, dict[str, str]]

    @property
    def mean(self) -> Values:
        """The mean KLD [n]."""
        return np.maximum(self.kld.mean(axis=1), _LEAST)

    @property
    def se(self) -> Values:
        """Its standard error [n], over the chunks."""
        return self.kld.std(axis=1, ddof=1) / np.sqrt(self.kld.shape[1])

    def of(self, chunks: slice) -> World:
        """The same on some of the chunks."""
        return replace(self, kld=self.kld[:, chunks])

    def preset(self, name: str) -> tuple[int, float]:
        """Tensor bytes of a preset, and the sum of the measured KLD of its choices.

        A type that is not among the candidates (such as q5_1) has the KLD of the next smaller one.
        """
        size, cost = 0, 0.0
        for tensor in range(len(self.table.roles)):
            own = np.flatnonzero(self.table.tensor == tensor)
            row = self.todo[own[0]].row
            bytes_of_preset = tensor_bytes(self.mixtures[name][row.name], row.shape)
            size += bytes_of_preset
            fitting = [i for i in own if self.table.bytes[i] <= bytes_of_preset] or [own[0]]
            same = [i for i in own if self.todo[i].type == self.mixtures[name][row.name]]
            cost += float(self.mean[same[0] if same else fitting[-1]])
        return size, cost


def measured(model: Path, folder: Path, store: Path, types: list[str], chunk_count: int | None) -> World:
    """Probe every choice, or take it from the store."""
    log = Log()
    facts = read_json(folder / "model.json")
    source = Source(model, folder / "manifest.tsv")
    chunks, _ = read_chunks(folder / "corpus" / "tuning.parquet", 0, chunk_count or 10**6)
    native = {name: presets.mixture(source.header, presets.resolve(name), imatrix=True) for name in PRESETS}
    quantizable = native[PRESETS[0]].quantizable
    todo, _ = choices(source, quantizable, types, read_gguf(folder / "imatrix.gguf"))
    identity = {"engine": engine_digest(), "model": facts["sha256"]}
    with (
        ThreadPoolExecutor(THREADS) as threads,
        Quantizer(engine_digest(), Store(store), THREADS) as quantizer,
        Session(
            source,
            {c.name for c in todo},
            chunks,
            identity=identity,
            quantizer=quantizer,
            pool=threads,
            folder=folder,
            log=log,
        ) as session,
    ):
        table = table_of(todo, error_table(todo, source, quantizer, threads, log))
        with log.progress("probes", len(todo), "probes") as progress:
            kld = []
            for choice in todo:
                kld.append(session.probe(choice).kld)
                progress.add(1)
    return World(todo, table, np.array(kld), {name: mixture.types for name, mixture in native.items()})


def allocate(table: predict.Table, values: Values, size: int) -> NDArray[np.bool_]:
    """The choices of least total value within `size` bytes, one a tensor (HiGHS)."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, vstack

    count, tensors = len(values), len(table.roles)
    one_each = csr_array((np.ones(count), (table.tensor, np.arange(count))), (tensors, count))
    rows = vstack([one_each, csr_array(table.bytes[None] / size)])
    least, most = np.append(np.ones(tensors), 0.0), np.append(np.ones(tensors), 1.0)
    solution = milp(
        values / np.median(values),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(rows, least, most),
        options={"mip_rel_gap": 1e-4, "time_limit": 20},
    )
    return np.asarray(solution.x > 0.5)


def ways(world: World, shares: list[float]) -> Iterator[tuple[str, float, Values]]:
    """Each way: its name, what it costs in probes of all chunks, its values [n]."""
    table, known, se = world.table, world.mean, world.se
    error = table.noise + table.bias2
    every = np.ones(len(known), bool)
    fitted = predict.fit(table, known, se)
    noise = np.minimum(se / known, 1.0) ** 2
    trust = fitted.parameters["misfit"] ** 2 / (fitted.parameters["misfit"] ** 2 + noise)
    yield "all measured", float(len(known)), known
    yield (
        "all measured, combined with the model",
        float(len(known)),
        np.exp(trust * np.log(known) + (1 - trust) * fitted.log),
    )
    yield "the model alone, of all", float(len(known)), fitted.kld
    total = world.kld.shape[1]
    for part in sorted({max(1, total // 4), max(1, total // 2)} - {total}):
        some = np.maximum(world.kld[:, :part].mean(axis=1), _LEAST)
        yield f"all choices on {part} of {total} chunks", len(known) * part / total, some
    yield "error table alone", 0.0, np.maximum(error, _LEAST)
    one = order.first(table, every)
    gain = np.full(len(table.roles), np.nan)
    gain[table.tensor[one]] = np.log(known[one] / error[one])
    scaled = np.exp(gain[table.tensor]) * np.maximum(error, _LEAST)
    yield "one probe a tensor, its error scaled", float(len(one)), scaled
    probed = np.full(len(known), np.nan)
    batch = one
    while True:
        probed[batch] = known[batch]
        have, prediction = np.isfinite(probed), predict.fit(table, probed, se)
        if have.sum() == len(one) or have.mean() >= shares[0]:
            yield (
                "the stage's own order, the rest predicted",
                float(have.sum()),
                np.where(have, known, prediction.kld),
            )
            if have.mean() >= shares[0]:
                shares = shares[1:]
        if not shares:
            return
        batch = order.following(table, prediction, probed, ~have, max(1, len(known) // 20))


def losses(values: Values, truth: World) -> list[float]:
    """What the allocation by these values loses at each preset's size, as a share of the preset's KLD."""
    losses = []
    for name in PRESETS:
        size, cost = truth.preset(name)
        best, got = (allocate(truth.table, each, size) for each in (truth.mean, values))
        losses.append(float(truth.mean[got].sum() - truth.mean[best].sum()) / cost)
    return losses


def table(world: World, shares: list[float]) -> str:
    """The table in markdown: on the same chunks, and on others."""
    from scipy.stats import spearmanr

    half = world.kld.shape[1] // 2
    views: list[tuple[str, World, World]] = [("same", world, world)]
    if half >= 2:
        views.append(("other", world.of(slice(half)), world.of(slice(half, None))))
    lines = [
        "| chunks | way | probes | rank correlation | rms log error | lost: mean | most |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, given, truth in views:
        for name, probes, values in ways(given, list(shares)):
            lost = losses(values, truth)
            off = float(np.sqrt(np.mean((np.log(values) - np.log(truth.mean)) ** 2)))
            rank = spearmanr(values, truth.mean).statistic
            lines.append(
                f"| {what} | {name} | {probes:.0f} | {rank:.3f} | {off:.2f} "
                f"| {np.mean(lost):.3f} | {max(lost):.3f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("model", type=Path, help="its source GGUF")
    arguments.add_argument("results", type=Path, help="a model's folder of results")
    arguments.add_argument("--store", type=Path, required=True, help="the store that holds the probes")
    arguments.add_argument("--chunks", type=int, default=None, help="chunks of the tuning corpus (all)")
    arguments.add_argument("--types", nargs="+", default=list(POOL), help="the candidate types")
    arguments.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5], help="of the probes")
    args = arguments.parse_args()
    print(table(measured(args.model, args.results, args.store, args.types, args.chunks), args.shares))


if __name__ == "__main__":
    main()
