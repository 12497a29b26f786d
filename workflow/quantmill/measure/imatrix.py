"""The importance matrix: native evaluation, in resumable shards, at full counts."""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantmill import command
from quantmill.check.kind import kind_of
from quantmill.engine.evaluator import Tokens
from quantmill.engine.mainline import Evaluator
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats import imatrix as formats
from quantmill.formats.imatrix import LEAST_ROWS
from quantmill.formats.importance import IMATRIX, CalibrationPerplexity
from quantmill.formats.settings import CHUNKS_A_UNIT, Chunks
from quantmill.imatrix import coverage
from quantmill.measure import head
from quantmill.measure.collect import Collector, Shard
from quantmill.measure.placed import note, noted
from quantmill.measure.saved import Saved
from quantmill.measure.score import (
    BATCH,
    batch_of,
    counted,
    groups,
    load_chunks,
    nll,
    observed,
    parts,
    perplexity,
    shared,
    with_bos,
)
from quantmill.model.heads import check_head
from quantmill.progress import Log, Progress
from quantmill.store import Identity, Store

STAGE = "measure.imatrix"

# The sampled chunks, whose logits are needed, go in smaller batches: a batch's
# logits are in memory twice, and the halves that nobody scores need no head. No batch is
# of fewer rows than are collected.
_SAMPLE_PARTS = 2

HIGHEST_PERPLEXITY = 1000.0
"""Of a model on text of its own kind: above it the text or the model is at fault."""


def collect(
    model: Evaluator,
    collector: Collector,
    chunks: Tokens,
    pool: ThreadPoolExecutor,
    saved: Saved,
    progress: Progress,
    *,
    sampled: bool = True,
) -> Shard:
    """Evaluate `chunks` [n, context] into one shard; the first chunk's perplexity is taken as a sample.

    Every token asks for its logits, or the last layer's inputs would be
    collected for some tokens only; the head itself is computed for the sampled
    half chunk alone. A model that is not `sampled` predicts nothing, and gets each chunk whole.
    """
    start = time.monotonic()
    done, state = saved.load()
    progress.reuse(done)
    shard = Shard.from_bytes(state[0]) if done else Shard({}, {}, np.empty(0, np.float32), 0.0)
    collector.sums, collector.leader = shard.sums, shard.leader or collector.leader
    if sampled and not done:
        with counted(progress, model, chunks[:1]):
            shard.nll = _sample(model, collector, with_bos(chunks[0], model.bos), pool)
        done = 1
    for group in groups(chunks[done:], model):
        model.clear()
        at_once = model.batch // len(group)
        with counted(progress, model, group):
            for first in range(0, group.shape[1], at_once):
                tokens = group[:, first : first + at_once]
                collector.begin(head=False)
                model.decode(tokens, first, discard=first + at_once >= group.shape[1])
        done += len(group)
        saved.save(done, lambda: [replace(shard, leader=dict(collector.leader)).to_bytes()])
    return replace(shard, leader=dict(collector.leader), seconds=shard.seconds + time.monotonic() - start)


def _sample(
    model: Evaluator, collector: Collector, chunk: Tokens, pool: ThreadPoolExecutor
) -> NDArray[np.float32]:
    """Collect a chunk [context], and give the nll of its second half."""
    model.clear()
    losses = [np.empty(0, np.float32)]
    at_once = min(model.batch, len(chunk))
    halved = at_once >= _SAMPLE_PARTS * LEAST_ROWS
    for tokens, first, targets in parts(len(chunk), -(-at_once // _SAMPLE_PARTS) if halved else at_once):
        sample = first < tokens.stop - tokens.start
        collector.begin(head=sample)
        model.decode(chunk[tokens], tokens.start, discard=not sample and tokens.stop == len(chunk))
        if sample:
            logits = model.logits(tokens.stop - tokens.start)[first:]
            losses.append(nll(logits, chunk[targets], pool))
    return np.concatenate(losses)


def measure(
    path: Path,
    chunks: Tokens,
    *,
    identity: Identity,
    threads: int,
    store: Store,
    log: Log,
    sampled: bool = True,
) -> Shard:
    """All chunks [n, context] as one shard, merged in order from the units of the store.

    The model is loaded only if a unit is missing. `sampled` as in `collect`.
    """
    collector = Collector()
    merged: Shard | None = None
    batch = batch_of(chunks.shape[1], whole=not sampled)
    if batch != min(BATCH, chunks.shape[1]) or not sampled:
        identity = identity | {"batch": batch, "sampled": sampled}
    with ThreadPoolExecutor(threads) as pool:

        def make(model: Evaluator, part: Tokens, saved: Saved, progress: Progress) -> bytes:
            note(store, STAGE, identity, model.placement)
            if model.placement is not None:
                collector.pool, collector.threads = pool, threads
            return collect(model, collector, part, pool, saved, progress, sampled=sampled).to_bytes()

        for unit in observed(
            STAGE,
            "imatrix",
            path,
            chunks,
            collector,
            identity,
            make,
            threads=threads,
            store=store,
            log=log,
            batch=batch,
        ):
            shard = Shard.from_bytes(unit)
            if merged is None:
                merged = shard
            else:
                merged.add(shard)
    assert merged is not None
    return merged


def entries(shard: Shard, names: set[str]) -> dict[str, formats.Entry]:
    """The entries of an imatrix file, one a weight, in f32; of the model's own tensors alone."""
    return {
        name: formats.Entry(
            shard.sums[leader].in_sum2.astype(np.float32), shard.sums[leader].counts.astype(np.float32)
        )
        for name, leader in sorted(shard.leader.items())
        if name in names
    }


def main(args: argparse.Namespace, log: Log) -> None:
    """The stage `measure.imatrix`."""
    config: Chunks = args.spec["config"]
    chunks = load_chunks(args.corpus, config)
    header = ggufio.read_header(args.model)
    kind = kind_of(header)
    if not kind.observed:
        what = f"is {kind.words}, of which no importance matrix can be collected"
        raise QuantmillError(what, args.model, "leave imatrix out for it")
    identity = {"engine": args.spec["engine"], "model": args.spec["from"]["model"]}
    store = command.store(args, log)
    share = shared(chunks, args.shard)
    through_head = None
    if config.get("mtp", False):
        check_head(header, args.model)
        through_head = head.measure(
            STAGE, args.model, share, identity=identity, threads=args.threads, store=store, log=log
        )
    shard = measure(
        args.model,
        share,
        identity=identity,
        threads=args.threads,
        store=store,
        log=log,
        sampled=kind.predicts,
    )
    if args.shard is not None:
        return
    if through_head is not None:
        shard.sums |= through_head.sums
        shard.leader |= through_head.leader
        shard.seconds += through_head.seconds
    measured = entries(shard, {tensor.name for tensor in header.tensors})
    broken = [name for name, entry in measured.items() if not np.isfinite(entry.in_sum2).all()]
    if broken:
        raise QuantmillError(f"non-finite activations in {broken[0]}", args.model, "the source is damaged")
    imatrix = formats.Imatrix(config["corpus"], config["chunks"], config["context"], measured)
    sample: CalibrationPerplexity | None = None
    if kind.predicts:
        sample = {
            **perplexity(shard.nll),
            "chunks": -(-len(chunks) // CHUNKS_A_UNIT),
            "tokens": int(shard.nll.size),
        }
    formats.write_gguf(args.gguf, imatrix)
    formats.write_dat(args.dat, imatrix)
    report = coverage.report(imatrix, header, "the model's graph never used them on this corpus")
    if through_head is not None:
        report["through_head"] = sorted(through_head.leader)
    report["corpus"] = config["corpus"]
    report["seconds"] = round(shard.seconds, 3)
    report["perplexity"] = sample
    if places := noted(store, STAGE, identity):
        report["devices"] = places
    if sample and sample["perplexity"] > HIGHEST_PERPLEXITY:
        report["warnings"].append(
            f"the source's perplexity on the calibration corpus is {sample['perplexity']:.0f}: "
            "the corpus does not suit the model, or the source is damaged"
        )
    IMATRIX.write(args.report, report)
    log.warn(report["warnings"])
    summary = f"{len(measured)} entries; {store.made} units made, {store.reused} reused"
    if sample:
        summary += f"; calibration perplexity {sample['perplexity']:.4f} +/- {sample['error']:.4f}"
    log.say(summary)


if __name__ == "__main__":
    arguments = command.parser(__doc__, threads=True, store=True, evaluates=True, shards=True)
    arguments.add_argument("--model", type=Path, required=True, help="the source GGUF")
    arguments.add_argument("--corpus", type=Path, required=True, help="token chunks (parquet)")
    arguments.add_argument("--gguf", type=Path, required=True, help="imatrix.gguf")
    arguments.add_argument("--dat", type=Path, required=True, help="imatrix.dat, the legacy form")
    arguments.add_argument("--report", type=Path, required=True, help="imatrix.json")
    command.run(arguments, main)
