"""What each tensor is worth: its error at every type of the pool, and the KLD that this costs the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from quantmill import command
from quantmill.errors import QuantmillError
from quantmill.files import write_json
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import SensitivityRow, write_sensitivity
from quantmill.measure.score import load_chunks
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.recipe import presets
from quantmill.sensitivity import order, predict
from quantmill.sensitivity.candidates import Choice, choices
from quantmill.sensitivity.errors import Error, added, error
from quantmill.sensitivity.session import Found, Session
from quantmill.stages import VERSIONS
from quantmill.store import Store

_BATCHES: Final = 20  # in which the choices are probed; the model is fitted anew between them


@dataclass(frozen=True)
class Probed:
    """What was probed: the choices by their place in the list, in order, and what was found of each."""

    found: dict[int, Found]

    def arrays(self, count: int) -> tuple[predict.Floats, predict.Floats]:
        """KLD and standard error [count], NaN where there is none."""
        kld, se = np.full(count, np.nan), np.full(count, np.nan)
        for i, found in self.found.items():
            if found.finite:
                kld[i], se[i] = found.mean, found.se
        return kld, se

    @property
    def seconds(self) -> float:
        """The time they took, whenever that was."""
        return sum(found.seconds + found.quantize for found in self.found.values())


def table_of(todo: Sequence[Choice], errors: Sequence[Error]) -> predict.Table:
    """The choices as the model of predict.py takes them."""
    tensors = list(dict.fromkeys(choice.name for choice in todo))
    roles = {choice.name: choice.row.role for choice in todo}
    bias2 = np.array([found.bias**2 for found in errors])
    return predict.Table(
        tensor=np.array([tensors.index(choice.name) for choice in todo], np.int64),
        roles=[roles[name] for name in tensors],
        bytes=np.array([choice.row.bytes for choice in todo], np.float64),
        elements=np.array([choice.row.elements for choice in todo], np.float64),
        noise=np.maximum(np.array([found.error for found in errors]) - bias2, 0.0),
        bias2=bias2,
    )


def error_table(
    todo: Sequence[Choice], source: Source, quantizer: Quantizer, pool: Executor, log: Log
) -> list[Error]:
    """The error of every choice."""
    with log.progress("errors", len(todo), "choices") as progress:
        found = []
        for choice in todo:
            found.append(
                error(choice, source.data(choice.name), quantizer, pool, VERSIONS["sensitivity.errors"])
            )
            progress.add(1)
    return found


def probe(session: Session, todo: Sequence[Choice], table: predict.Table, seconds: float, log: Log) -> Probed:
    """Probe the most informative choices first, as many as `seconds` allow.

    What a probe took counts whenever it was made: so a run that was killed goes
    on with what is left, and a run on the same store decides the same.
    QuantmillError where there is no time for a single one.
    """
    used = session.used()
    pace = session.floor().seconds
    if pace > seconds:
        raise QuantmillError(
            f"{seconds / 60:g} minutes are too few for one probe, which takes {pace:.0f} s",
            cure="raise `sensitivity.minutes`, or ask for fewer chunks",
        )
    probed = Probed({})
    left = np.array([choice.name in used and not choice.kept for choice in todo])
    batch = list(order.first(table, left))
    with log.progress("probes", min(int(left.sum()), int(seconds / pace)), "probes") as progress:
        while batch:
            for i in batch:
                if probed.seconds + pace > seconds:
                    return probed
                probed.found[i] = session.probe(todo[i])
                left[i] = False
                pace = probed.seconds / len(probed.found)
                more = min(int(left.sum()), int((seconds - probed.seconds) / pace))
                progress.expect(len(probed.found) + max(0, more))
                progress.add(1)
            kld, se = probed.arrays(len(todo))
            count = max(1, len(todo) // _BATCHES)
            batch = list(order.following(table, predict.fit(table, kld, se), kld, left, count))
    return probed


def damages(
    todo: Sequence[Choice], errors: Sequence[Error], probed: Probed, prediction: predict.Prediction
) -> list[SensitivityRow]:
    """A row a choice, measured where it was probed; a choice whose probe gave no number has none.

    Estimated is what was measured, drawn to the prediction, or predicted, and what rounded activations add.
    """
    found = []
    kld, se = probed.arrays(len(todo))
    estimate = np.where(np.isnan(kld), prediction.kld, prediction.drawn(kld, se)) * (1 + prediction.more)
    for i, (choice, lost) in enumerate(zip(todo, errors, strict=True)):
        row, probe = choice.row, probed.found.get(i)
        if probe is not None and not probe.finite:
            continue
        if choice.kept:
            known, how = (0.0, 0.0), "measured"
        elif probe is not None:
            known, how = (probe.mean, probe.se), "measured"
        else:
            known, how = (float(prediction.kld[i]), float(prediction.se[i])), "predicted"
        found.append(
            SensitivityRow(row.name, row.role, row.layer, row.shape, row.type, row.bytes, lost.error, lost.se,
                   *known, how, 0.0 if choice.kept else float(estimate[i]))
        )  # fmt: skip
    return found


def warnings(
    todo: Sequence[Choice], probed: Probed, unused: Sequence[str], left_out: Sequence[str], expanded: bool
) -> list[str]:
    """What a reader of the table must know, a sentence each."""
    found = [
        f"{todo[i]} is left out: the model with it gives what is no number"
        for i, probe in sorted(probed.found.items()) if not probe.finite
    ]  # fmt: skip
    if left_out:
        found.append(
            f"{len(left_out)} choices are left out, as they need importance values that are missing: "
            + _some(left_out)
        )
    if unused:
        found.append(
            f"{len(unused)} tensors are not used when the model is evaluated, and cannot be probed: "
            + _some(unused)
        )
    tensors = len({choice.name for choice in todo})
    if len(probed.found) < tensors:
        found.append(f"{len(probed.found)} probes for {tensors} tensors: give it more minutes")
    if expanded:
        found.append(
            "the source is quantized: what is probed against is its own values as f16, "
            "so that its own loss is not counted"
        )
    return found


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `sensitivity.measure`."""
    config = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    source = Source(args.model, args.manifest)
    imatrix = None if args.imatrix is None else read_gguf(args.imatrix)
    mixture = presets.mixture(source.header, presets.resolve("Q8_0"), imatrix=imatrix is not None)
    todo, left_out = choices(source, mixture.quantizable, config["types"], imatrix)
    identity = {"engine": args.spec["engine"], "model": args.spec["from"]["model"]}
    store = Store(args.store, args.store_max, log)
    with (
        ThreadPoolExecutor(args.threads) as pool,
        Quantizer(args.spec["engine"], store, args.threads) as quantizer,
        Session(source, {choice.name for choice in todo}, chunks, identity=identity, quantizer=quantizer,
                pool=pool, folder=args.out.parent, log=log) as session,
    ):  # fmt: skip
        before = session.floor()  # a model that cannot be held is refused before any work
        errors = error_table(todo, source, quantizer, pool, log)
        table = table_of(todo, errors)
        probed = probe(session, todo, table, config["minutes"] * 60, log)
        after = session.floor([todo[i] for i in probed.found])
        used, expanded = session.used(), session.expansion.needed
        rounded = session.rounding()
    kld, se = probed.arrays(len(todo))
    more = np.array([added(rounded, choice) for choice in todo])
    prediction = predict.fit(table, kld, se, more)
    rows = damages(todo, errors, probed, prediction)
    unused = [name for name in dict.fromkeys(choice.name for choice in todo) if name not in used]
    forward = sum(found.forward for found in probed.found.values())
    spent = sum(found.seconds for found in probed.found.values())
    report = {
        **{key: config[key] for key in ("corpus", "chunks", "context", "minutes", "types")},
        "tokens": chunks.shape[0] * (chunks.shape[1] // 2 - 1),
        "tensors": len({row.name for row in rows}),
        "choices": len(rows),
        "probes": len(probed.found),
        "predicted": sum(row.how == "predicted" for row in rows),
        "seconds": round(probed.seconds, 3),
        "forward_seconds": round(forward / len(probed.found), 3) if forward else None,
        "overhead": round(spent / forward, 4) if forward else None,
        "floor": {"before": before.mean, "after": after.mean},
        "expanded": "f16" if expanded else None,
        "fit": prediction.parameters | {"cross_validated": predict.cross_validated(table, kld, se)},
        "left_out": left_out,
        "unused": unused,
        "warnings": warnings(todo, probed, unused, left_out, expanded),
    }
    write_sensitivity(args.out, rows)
    write_json(args.report, report)
    log.warn(report["warnings"])
    log.say(
        f"{len(rows)} choices of {report['tensors']} tensors, {len(probed.found)} probed in "
        f"{probed.seconds:.1f} s; {store.made} units made, {store.reused} reused"
    )


def _some(names: Sequence[str]) -> str:
    return "; ".join(names[:3]) + ("; ..." if len(names) > 3 else "")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    arguments = command.parser(__doc__, threads=True, store=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF (its first shard)")
    arguments.add_argument("--manifest", type=Path, required=True, help="manifest.tsv of the source")
    arguments.add_argument("--imatrix", type=Path, nargs="?", help="imatrix.gguf, where there is one")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--out", type=Path, required=True, help="sensitivity.tsv")
    arguments.add_argument("--report", type=Path, required=True, help="sensitivity.json")
    return arguments


if __name__ == "__main__":
    command.run(parser(), main)
