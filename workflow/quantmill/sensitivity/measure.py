"""Measures the sensitivity of each tensor: its error at every candidate type, and the KLD that it causes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from quantmill import command
from quantmill.check.kind import kind_of
from quantmill.errors import QuantmillError
from quantmill.formats.allocation import SENSITIVITY, Sensitivity
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import SensitivityRow, write_sensitivity
from quantmill.formats.settings import Probes
from quantmill.measure.moments import add_options, asked_for
from quantmill.measure.score import load_chunks
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.recipe import presets
from quantmill.sensitivity import order, predict
from quantmill.sensitivity.candidates import Choice, choices
from quantmill.sensitivity.errors import Error, added, error
from quantmill.sensitivity.session import ProbeResult, Session
from quantmill.shards import Shard
from quantmill.stages import VERSIONS

_BATCHES: Final = 20  # of probes; the model is fitted again after each batch


@dataclass(frozen=True)
class Probed:
    """The results of the probes, in their order, by the choice's index in the list."""

    results: dict[int, ProbeResult]

    def arrays(self, count: int) -> tuple[predict.Floats, predict.Floats]:
        """KLD and standard error [count], NaN where there is none."""
        kld, se = np.full(count, np.nan), np.full(count, np.nan)
        for i, result in self.results.items():
            if result.finite:
                kld[i], se[i] = result.mean, result.se
        return kld, se

    @property
    def seconds(self) -> float:
        """The time that all probes took, also those of an earlier run."""
        return sum(result.seconds + result.quantize for result in self.results.values())


def table_of(todo: Sequence[Choice], errors: Sequence[Error]) -> predict.Table:
    """The choices in the form of predict.py."""
    tensors = list(dict.fromkeys(choice.name for choice in todo))
    roles = {choice.name: choice.row.role for choice in todo}
    bias2 = np.array([row.bias**2 for row in errors])
    return predict.Table(
        tensor=np.array([tensors.index(choice.name) for choice in todo], np.int64),
        roles=[roles[name] for name in tensors],
        bytes=np.array([choice.row.bytes for choice in todo], np.float64),
        elements=np.array([choice.row.elements for choice in todo], np.float64),
        noise=np.maximum(np.array([row.error for row in errors]) - bias2, 0.0),
        bias2=bias2,
    )


def error_table(
    todo: Sequence[Choice], source: Source, quantizer: Quantizer, pool: Executor, log: Log
) -> list[Error]:
    """The error of every choice."""
    with log.progress("errors", len(todo), "choices") as progress:
        table = []
        for choice in todo:
            data = source.data(choice.name)
            table.append(error(choice, data, quantizer, pool, VERSIONS["sensitivity.errors"]))
            progress.add(1)
    return table


def probe(
    session: Session,
    todo: Sequence[Choice],
    table: predict.Table,
    seconds: float,
    log: Log,
    shard: Shard | None = None,
) -> Probed:
    """Probe the most informative choices first, as many as `seconds` allow.

    A stored probe counts with the time that it took when it was made. So a run
    that was killed continues with the rest of its time, and a run on the same
    store gives the same result. QuantmillError where there is no time for one probe.

    What is in a batch depends on the results of those before it alone. So shards
    that run at the same time come to the same batches: each begins a batch with its
    own part, and takes the rest from the store as the others make it. They make a few
    more than count if these take longer than those before.
    """
    used = session.used()
    left = np.array([choice.name in used and not choice.unchanged for choice in todo])
    pace = session.noise_floor().seconds
    if pace > seconds:
        raise QuantmillError(
            f"{seconds / 60:g} minutes are too few for one probe, which takes {pace:.0f} s",
            cure="raise `sensitivity.minutes`, or ask for fewer chunks",
        )
    probed = Probed({})
    batch = list(order.first(table, left))
    with log.progress("probes", min(int(left.sum()), int(seconds / pace)), "probes") as progress:
        while batch:
            fit = batch[: int((seconds - probed.seconds) / pace)]
            ahead = [] if shard is None else shard.first(fit)
            for i in ahead:
                session.probe(todo[i])
                progress.add(1)
            for number, i in enumerate(batch):
                if probed.seconds + pace > seconds:
                    return probed
                probed.results[i] = session.probe(todo[i])
                left[i] = False
                pace = probed.seconds / len(probed.results)
                more = min(int(left.sum()), int((seconds - probed.seconds) / pace))
                progress.expect(len(probed.results) + max(0, more))
                if number >= len(ahead):
                    progress.add(1)
            kld, se = probed.arrays(len(todo))
            count = max(1, len(todo) // _BATCHES)
            batch = list(order.following(table, predict.fit(table, kld, se), kld, left, count))
    return probed


def make_rows(
    todo: Sequence[Choice], errors: Sequence[Error], probed: Probed, prediction: predict.Prediction
) -> list[SensitivityRow]:
    """The rows of the choices, measured or predicted. A choice whose probe gave NaN has no row.

    The estimate combines the measured value with the prediction, or is the
    prediction; then it adds what rounded activations cost.
    """
    rows = []
    kld, se = probed.arrays(len(todo))
    estimate = np.where(np.isnan(kld), prediction.kld, prediction.combined(kld, se)) * (1 + prediction.more)
    for i, (choice, loss) in enumerate(zip(todo, errors, strict=True)):
        row, result = choice.row, probed.results.get(i)
        if result is not None and not result.finite:
            continue
        if choice.unchanged:
            known, how = (0.0, 0.0), "measured"
        elif result is not None:
            known, how = (result.mean, result.se), "measured"
        else:
            known, how = (float(prediction.kld[i]), float(prediction.se[i])), "predicted"
        rows.append(
            SensitivityRow(
                name=row.name,
                role=row.role,
                layer=row.layer,
                shape=row.shape,
                type=row.type,
                bytes=row.bytes,
                error=loss.error,
                error_se=loss.se,
                kld=known[0],
                se=known[1],
                how=how,
                estimate=0.0 if choice.unchanged else float(estimate[i]),
            )
        )
    return rows


def warnings(
    todo: Sequence[Choice], probed: Probed, unused: Sequence[str], left_out: Sequence[str], expanded: bool
) -> list[str]:
    """What a reader of the table must know, one sentence each."""
    texts = [
        f"{todo[i]} is left out: the model with it gives what is no number"
        for i, result in sorted(probed.results.items())
        if not result.finite
    ]
    if left_out:
        texts.append(
            f"{len(left_out)} choices are left out, as they need importance values that are missing: "
            + _some(left_out)
        )
    if unused:
        texts.append(
            f"{len(unused)} tensors are not used when the model is evaluated, and cannot be probed: "
            + _some(unused)
        )
    tensors = len({choice.name for choice in todo})
    if len(probed.results) < tensors:
        texts.append(f"{len(probed.results)} probes for {tensors} tensors: give it more minutes")
    if expanded:
        texts.append(
            "the source is quantized: what is probed against is its own values as f16, "
            "so that its own loss is not counted"
        )
    return texts


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `sensitivity.measure`."""
    config: Probes = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    source = Source(args.model, args.manifest)
    imatrix = None if args.imatrix is None else read_gguf(args.imatrix)
    mixture = presets.mixture(source.header, presets.resolve("Q8_0"), imatrix=imatrix is not None)
    embeds = kind_of(source.header).embeds
    store = command.store(args, log)
    moments = asked_for(args, config.get("rounding"), source.header, store, log)
    todo, left_out = choices(source, mixture.quantizable, config["types"], imatrix, moments)
    identity = {"engine": args.spec["engine"], "model": args.spec["from"]["model"]}
    with (
        ThreadPoolExecutor(args.threads) as pool,
        Quantizer(args.spec["engine"], store, args.threads, moments) as quantizer,
        Session(
            source,
            {choice.name for choice in todo},
            chunks,
            identity=identity,
            quantizer=quantizer,
            pool=pool,
            folder=args.out.parent,
            log=log,
            embeds=embeds,
        ) as session,
    ):
        before = session.noise_floor()  # a model that does not fit the memory is refused before any work
        if args.shard is not None:
            error_table(args.shard.of(todo), source, quantizer, pool, log)
        errors = error_table(todo, source, quantizer, pool, log)
        table = table_of(todo, errors)
        probed = probe(session, todo, table, config["minutes"] * 60, log, args.shard)
        if args.shard is not None:
            session.refuse_if_changed()
            return
        after = session.noise_floor([todo[i] for i in probed.results])
        used, expanded = session.used(), session.expansion.needed
        rounded = session.rounding()
    kld, se = probed.arrays(len(todo))
    more = np.array([added(rounded, choice) for choice in todo])
    prediction = predict.fit(table, kld, se, more)
    rows = make_rows(todo, errors, probed, prediction)
    unused = [name for name in dict.fromkeys(choice.name for choice in todo) if name not in used]
    forward = sum(result.forward for result in probed.results.values())
    spent = sum(result.seconds for result in probed.results.values())
    report: Sensitivity = {
        "corpus": config["corpus"],
        "chunks": config["chunks"],
        "context": config["context"],
        "minutes": config["minutes"],
        "types": config["types"],
        "tokens": chunks.size if embeds else chunks.shape[0] * (chunks.shape[1] // 2 - 1),
        "tensors": len({row.name for row in rows}),
        "choices": len(rows),
        "probes": len(probed.results),
        "predicted": sum(row.how == "predicted" for row in rows),
        "seconds": round(probed.seconds, 3),
        "forward_seconds": round(forward / len(probed.results), 3) if forward else None,
        "overhead": round(spent / forward, 4) if forward else None,
        "floor": {"before": before.mean, "after": after.mean},
        "expanded": "f16" if expanded else None,
        "fit": {**prediction.parameters, "cross_validated": predict.cross_validated(table, kld, se)},
        "left_out": left_out,
        "unused": unused,
        "warnings": warnings(todo, probed, unused, left_out, expanded),
    }
    write_sensitivity(args.out, rows)
    SENSITIVITY.write(args.report, report)
    log.warn(report["warnings"])
    log.say(
        f"{len(rows)} choices of {report['tensors']} tensors, {len(probed.results)} probed in "
        f"{probed.seconds:.1f} s; {store.made} units made, {store.reused} reused"
    )


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument("--manifest", type=Path, required=True, help="manifest.tsv of the source")
    arguments.add_argument("--imatrix", type=Path, nargs="?", help="imatrix.gguf, where there is one")
    add_options(arguments)
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--report", type=Path, required=True, help="sensitivity.json")
    return arguments


if __name__ == "__main__":
    command.run(parser(), main)
