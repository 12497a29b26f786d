"""The rows of the table: what both sides do, what is compared, and whether the target holds."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pairs import Comparison, Figures, Run, alternate, compare, run
from stages import ROOT, Tier, Workspace, make_corpora

IMATRIX_CHUNKS, PERPLEXITY_CHUNKS = 32, 16
PROBE_CHUNKS, PROBE_MINUTES = 12, 1.0
PROBLEMS, ANSWER = 64, 256
PROMPT, GENERATE, REPETITIONS = 512, 128, 5
TEMPLATE = ROOT / "recipes" / "preset.yaml.j2"
IK_TEMPLATE = ROOT / "recipes" / "ik.yaml.j2"

SEVEN_TIERS = [Tier(name, name) for name in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M")]
SEVEN_TIERS.append(Tier("Q4_K_L", "Q4_K_M", "q8_0"))

_LARGE = {"Q6_K_L": "Q6_K", "Q5_K_L": "Q5_K_M", "Q4_K_L": "Q4_K_M", "Q3_K_XL": "Q3_K_L", "Q2_K_L": "Q2_K"}
_PRESETS = (
    "Q8_0 Q6_K Q5_K_M Q5_K_S Q4_K_M Q4_K_S Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M IQ3_M Q3_K_S IQ3_XS IQ3_XXS "
    "Q2_K IQ2_M IQ2_S IQ2_XS IQ2_XXS"
)
FULL_SWEEP = [Tier(name, name) for name in _PRESETS.split()]
FULL_SWEEP += [Tier(name, base, "q8_0") for name, base in _LARGE.items()]


@dataclass(frozen=True)
class Row:
    """One line of the table; `least` to `most` is where `ratio` (or the seconds) must lie."""

    what: str
    ours: str
    theirs: str
    ratio: str
    target: str
    holds: bool | None
    checked: str = ""


@dataclass(frozen=True)
class Bench:
    """What every row is given: the workspace, how many pairs, and where the rows' own files go."""

    work: Workspace
    repeat: int
    name: str

    @property
    def is_smollm2(self) -> bool:
        """Whether this is the default model, for which the issue states its own target."""
        return self.name.startswith("SmolLM2")


def prepare(model: Path, folder: Path, tools: Path) -> Workspace:
    """A workspace with its corpora, manifest and imatrix: what all rows stand on, untimed."""
    chunks = {"imatrix": IMATRIX_CHUNKS, "perplexity": PERPLEXITY_CHUNKS, "tuning": PROBE_CHUNKS}
    work = Workspace(model, folder, tools, make_corpora(model, folder / "corpus", chunks))
    run(work.manifest())
    run(work.imatrix(IMATRIX_CHUNKS))
    return work


def imatrix(bench: Bench) -> Iterable[Row]:
    """A cold imatrix with its calibration perplexity, against llama-imatrix without one."""
    work = bench.work

    def ours() -> Figures:
        work.empty_store()
        return _figures(run(work.imatrix(IMATRIX_CHUNKS)))

    pairs = alternate(ours, lambda: _figures(run(work.llama_imatrix(IMATRIX_CHUNKS))), bench.repeat)
    same = same_imatrix(work.path("imatrix.gguf"), work.path("theirs/imatrix.gguf"))
    what = f"imatrix, {IMATRIX_CHUNKS} chunks"
    yield _row(f"{what}: wall clock", compare(pairs, "seconds"), most=0.85, checked=same)
    yield _row(f"{what}: peak memory", compare(pairs, "peak"), most=0.95, unit="MiB", scale=1 << 20)


def quantize(bench: Bench) -> Iterable[Row]:
    """One file from an empty store."""
    work, tier = bench.work, Tier("Q4_K_M", "Q4_K_M")
    _resolve(work, [tier])

    def ours() -> Figures:
        work.empty_store()
        return _figures(run(work.write(tier.name)))

    pairs = alternate(ours, lambda: _figures(run(work.llama_quantize(tier))), bench.repeat)
    same = same_tensors(work.path("gguf/Q4_K_M.gguf"), work.path("theirs/Q4_K_M.gguf"))
    yield _row("cold quantize of one file, Q4_K_M", compare(pairs, "seconds"), most=1.05, checked=same)


def gptq(bench: Bench) -> Iterable[Row]:
    """The second moments against llama-imatrix, and one file rounded with them against llama-quantize."""
    work, tier = bench.work, Tier("Q4_K_M", "Q4_K_M")
    _resolve(work, [tier])
    kept = work.path("store-of-moments")

    def moments() -> Figures:
        work.empty_store()
        return _figures(run(work.moments(IMATRIX_CHUNKS)))

    pairs = alternate(moments, lambda: _figures(run(work.llama_imatrix(IMATRIX_CHUNKS))), bench.repeat)
    what = f"second moments, {IMATRIX_CHUNKS} chunks, beside llama-imatrix"
    yield _row(f"{what}: wall clock", compare(pairs, "seconds"), most=2.0)
    yield _row(f"{what}: peak memory", compare(pairs, "peak"), unit="MiB", scale=1 << 20)
    moments()
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(work.store, kept)

    def ours() -> Figures:
        work.empty_store()
        shutil.copytree(kept, work.store)
        return _figures(run(work.write(tier.name, gptq=True)))

    pairs = alternate(ours, lambda: _figures(run(work.llama_quantize(tier))), bench.repeat)
    yield _row("one file rounded by gptq, Q4_K_M, beside llama-quantize", compare(pairs, "seconds"), most=3.0)


def ik_quantize(bench: Bench) -> Iterable[Row]:
    """One file of ik_llama.cpp's own types from an empty store, against its own tool."""
    work, name = bench.work, "IQ4_KS"
    run(work.plan(name, IK_TEMPLATE, {}))

    def ours() -> Figures:
        work.empty_store()
        return _figures(run(work.write(name, "ik")))

    pairs = alternate(ours, lambda: _figures(run(work.ik_quantize(name))), bench.repeat)
    same = same_bytes(work.path(f"gguf/{name}.gguf"), work.path(f"theirs/{name}.gguf"))
    yield _row(f"cold quantize of one file by ik, {name}", compare(pairs, "seconds"), most=1.05, checked=same)


def sweep(bench: Bench) -> Iterable[Row]:
    """Seven tiers."""
    return _sweep(bench, "sweep of 7 tiers", SEVEN_TIERS, 1.0)


def tiers(bench: Bench) -> Iterable[Row]:
    """A full sweep."""
    return _sweep(bench, f"{len(FULL_SWEEP)} tiers", FULL_SWEEP, 0.5 if bench.is_smollm2 else 0.7)


def rule(bench: Bench) -> Iterable[Row]:
    """One rule of a finished file changes: ours makes that tensor again, llama-quantize the whole file."""
    work, tier = bench.work, Tier("Q4_K_M", "Q4_K_M")
    _resolve(work, [tier])
    template = work.path("one-rule.yaml.j2")
    template.write_text(
        "engine: mainline\nbase: Q4_K_M\nimatrix: optional\n"
        "rules:\n  - {role: attn_output, layers: [0], type: q8_0, why: one changed rule}\n",
        encoding="utf-8",
    )
    run(work.plan("changed", template, {}))

    def ours() -> Figures:
        work.empty_store()
        run(work.write(tier.name))
        return _figures(run(work.write("changed")))

    pairs = alternate(ours, lambda: _figures(run(work.llama_quantize(tier))), bench.repeat)
    yield _row("one changed rule, against the whole file", compare(pairs, "seconds"), most=0.15)


def perplexity(bench: Bench) -> Iterable[Row]:
    """The perplexity of the source on the same tokens."""
    work = bench.work

    def ours() -> Figures:
        work.empty_store()
        figures = _figures(run(work.perplexity(PERPLEXITY_CHUNKS)))
        found = json.loads(work.path("perplexity.json").read_text("utf-8"))
        return figures | {"perplexity": found["perplexity"]}

    def theirs() -> Figures:
        done = run(work.llama_perplexity(PERPLEXITY_CHUNKS))
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", done.output)
        return _figures(done) | {"perplexity": float(found[1]) if found else float("nan")}

    pairs = alternate(ours, theirs, bench.repeat)
    mine, other = (side["perplexity"] for side in pairs[0])
    same = f"PPL {mine:.4f}, theirs {other:.4f}"
    what = f"perplexity, {PERPLEXITY_CHUNKS} chunks"
    yield _row(f"{what}: wall clock", compare(pairs, "seconds"), most=1.05, checked=same)
    yield _row(f"{what}: peak memory", compare(pairs, "peak"), unit="MiB", scale=1 << 20)


def kld(bench: Bench) -> Iterable[Row]:
    """The KL divergence of one file, the reference's pass included; and what both sides keep for it."""
    work, tier = bench.work, Tier("Q4_K_M", "Q4_K_M")
    _resolve(work, [tier])
    run(work.write(tier.name))

    def ours() -> Figures:
        work.empty_store()
        first = run(work.divergence(PERPLEXITY_CHUNKS))
        kept = sum(path.stat().st_size for path in work.store.rglob("*") if path.is_file())
        second = run(work.divergence(PERPLEXITY_CHUNKS, tier.name))
        found = json.loads(work.path(f"kld-{tier.name}.json").read_text("utf-8"))
        mean, gap = found["kld"]["mean"], found["reference"]["gap"]["mean"]
        floor = json.loads(work.path("kld-source.json").read_text("utf-8"))["kld"]["max"]
        peak = float(max(first.peak, second.peak))
        seconds = {"seconds": first.seconds + second.seconds, "peak": peak, "disk": float(kept)}
        return seconds | {"kld": mean, "gap": gap, "floor": floor}

    def theirs() -> Figures:
        first = run(work.llama_divergence(PERPLEXITY_CHUNKS))
        kept = work.path("theirs/base.kld").stat().st_size
        second = run(work.llama_divergence(PERPLEXITY_CHUNKS, tier.name))
        # the last line of its running table: chunk, PPL, ln of the ratio, KL divergence
        rows = re.findall(r"^ *\d+ +\S+ ± +\S+ +\S+ ± +\S+ +(\S+) ±", second.output, re.MULTILINE)
        peak = float(max(first.peak, second.peak))
        seconds = {"seconds": first.seconds + second.seconds, "peak": peak, "disk": float(kept)}
        return seconds | {"kld": float(rows[-1]) if rows else float("nan")}

    pairs = alternate(ours, theirs, bench.repeat)
    mine, other = pairs[0]
    same = (
        f"KLD {mine['kld']:.5f}, theirs {other['kld']:.5f}; the source's own {mine['floor']:g}; "
        f"gap {mine['gap']:.1e}"
    )
    what = f"KL divergence of one file, {PERPLEXITY_CHUNKS} chunks"
    yield _row(f"{what}: wall clock", compare(pairs, "seconds"), most=1.0, checked=same)
    yield _row(f"{what}: disk", compare(pairs, "disk"), most=0.5, unit="MiB", scale=1 << 20)
    yield _row(f"{what}: peak memory", compare(pairs, "peak"), unit="MiB", scale=1 << 20)


def probe(bench: Bench) -> Iterable[Row]:
    """A minute of probes: the time of one, all but quantizing, over that of its own forward passes."""
    work = bench.work

    def once() -> tuple[Figures, Figures]:
        work.empty_store()
        run(work.sensitivity(PROBE_CHUNKS, PROBE_MINUTES))
        found = json.loads(work.path("sensitivity.json").read_text("utf-8"))
        forward = float(found["forward_seconds"])
        figures = {"probes": float(found["probes"]), "floor": float(max(found["floor"].values()))}
        return {"seconds": forward * found["overhead"]} | figures, {"seconds": forward}

    pairs = [once() for _ in range(bench.repeat)]
    probes, floor = (max(mine[figure] for mine, _ in pairs) for figure in ("probes", "floor"))
    checked = f"{probes:.0f} probes a minute at most; the model against itself before and after: {floor:g}"
    what = f"one probe of {PROBE_CHUNKS} chunks, against its forward passes"
    yield _row(what, compare(pairs, "seconds"), most=1.15, checked=checked)


def speed(bench: Bench) -> Iterable[Row]:
    """Tokens per second of the source, as the two measure it."""
    work, wanted = bench.work, (PROMPT, GENERATE, REPETITIONS)

    def ours() -> Figures:
        run(work.speed(*wanted))
        found = json.loads(work.path("speed.json").read_text("utf-8"))
        return {"pp": found["prompt"]["mean"], "tg": found["generate"]["mean"]}

    def theirs() -> Figures:
        output = run(work.llama_bench(*wanted)).output
        tests = json.loads(output[output.index("[") : output.rindex("]") + 1])
        return {"pp" if test["n_prompt"] else "tg": test["avg_ts"] for test in tests}

    pairs = alternate(ours, theirs, bench.repeat)
    for figure, tokens in (("pp", PROMPT), ("tg", GENERATE)):
        yield _row(f"{figure}{tokens}", compare(pairs, figure), least=0.98, most=1.02, unit="t/s")


def humaneval(bench: Bench) -> Iterable[Row]:
    """Answers to HumanEval, against generation as llama-bench measures it: tg128, from an empty memory.

    Beside it what has no counterpart there: with the prompts; and the stage as a whole, which is Python's
    start, loading, and the tests in their sandboxes as well.
    """
    work = bench.work

    def ours() -> Figures:
        work.empty_store()
        done = run(work.humaneval(PROBLEMS, ANSWER))
        found = json.loads(work.path("humaneval.json").read_text("utf-8"))
        tokens = found["generated_tokens"]
        asked = found["seconds"] + found["prompt_seconds"]
        rates = {"rate": found["tokens_per_s"], "asked": tokens / asked, "whole": tokens / done.seconds}
        return rates | {"tokens": tokens}

    def theirs() -> Figures:
        output = run(work.llama_bench(0, GENERATE, REPETITIONS)).output
        tests = json.loads(output[output.index("[") : output.rindex("]") + 1])
        rate = float(tests[0]["avg_ts"])
        return dict.fromkeys(("rate", "asked", "whole"), rate)

    pairs = alternate(ours, theirs, bench.repeat)
    checked = f"{pairs[0][0]['tokens']:.0f} tokens generated"
    what = f"HumanEval, {PROBLEMS} problems"
    yield _row(f"{what}: generating", compare(pairs, "rate"), least=0.9, unit="t/s", checked=checked)
    yield _row(f"{what}: prompts and generating", compare(pairs, "asked"), unit="t/s")
    yield _row(f"{what}: the whole stage", compare(pairs, "whole"), unit="t/s")


def _sweep(bench: Bench, what: str, tiers: list[Tier], most: float) -> Iterable[Row]:
    work = bench.work

    def ours() -> Figures:
        work.empty_store()
        resolved = run(work.manifest()).seconds + _resolve(work, tiers)
        written = sum(run(work.write(tier.name)).seconds for tier in tiers)
        return {"written": written, "whole": resolved + written}

    def theirs() -> Figures:
        seconds = sum(run(work.llama_quantize(tier)).seconds for tier in tiers)
        return {"written": seconds, "whole": seconds}

    pairs = alternate(ours, theirs, bench.repeat)
    checks = {
        same_tensors(work.path(f"gguf/{t.name}.gguf"), work.path(f"theirs/{t.name}.gguf")) for t in tiers
    }
    same = "; ".join(sorted(checks))
    yield _row(f"{what}, {bench.name}", compare(pairs, "written"), most=most, checked=same)
    yield _row(f"{what}, {bench.name}, with manifest, recipes and plans", compare(pairs, "whole"), most=most)


def _resolve(work: Workspace, tiers: list[Tier]) -> float:
    """Plan every tier; the seconds taken."""
    return sum(run(work.plan(tier.name, TEMPLATE, tier.parameters)).seconds for tier in tiers)


def _figures(done: Run) -> Figures:
    return {"seconds": done.seconds, "peak": float(done.peak)}


def _row(
    what: str,
    found: Comparison,
    *,
    least: float = 0.0,
    most: float | None = None,
    unit: str = "s",
    scale: float = 1.0,
    checked: str = "",
) -> Row:
    """A row of a ratio; `least` to `most` is the target, none where neither is given."""
    bounds = f"≥ {least:g}" if most is None else f"≤ {most:g}" if not least else f"{least:g} to {most:g}"
    target = bounds if least or most is not None else ""
    return Row(
        what,
        f"{found.ours / scale:.4g} {unit}",
        f"{found.theirs / scale:.4g} {unit}",
        f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})",
        target,
        least <= found.ratio <= (most or float("inf")) if target else None,
        checked,
    )


def same_imatrix(ours: Path, theirs: Path) -> str:
    """How two imatrix files compare: entries, counts, and the largest relative difference of a sum."""
    import numpy
    from gguf import GGUFReader

    mine, other = ({t.name: t.data.copy() for t in GGUFReader(path).tensors} for path in (ours, theirs))
    if mine.keys() != other.keys():
        return f"entries differ: {len(mine.keys() ^ other.keys())}"
    counts = [name for name in mine if name.endswith(".counts")]
    short = [name for name in counts if not numpy.array_equal(mine[name], other[name])]
    if short:
        return f"counts differ: {len(short)}, such as {short[0]}"
    sums = [name for name in mine if name.endswith(".in_sum2")]
    worst = max(float(numpy.max(abs(mine[n] - other[n]) / numpy.maximum(abs(other[n]), 1e-30))) for n in sums)
    return f"{len(counts)} entries at full count, within {worst:.1e}"


def same_tensors(ours: Path, theirs: Path) -> str:
    """How the tensors of two GGUF files compare."""
    import numpy
    from gguf import GGUFReader

    mine, other = ({t.name: t for t in GGUFReader(path).tensors} for path in (ours, theirs))
    if mine.keys() != other.keys():
        return f"tensors differ: {len(mine.keys() ^ other.keys())} names"
    kinds = sum(mine[name].tensor_type != other[name].tensor_type for name in mine)
    differ = sum(not numpy.array_equal(mine[name].data, other[name].data) for name in mine)
    return f"{differ} of {len(mine)} tensors differ, {kinds} in type"


def same_bytes(ours: Path, theirs: Path) -> str:
    """The same of files with types that gguf-py does not know."""
    import numpy

    from quantmill.formats.ggufio import read_header

    files = []
    for path in (ours, theirs):
        data = numpy.memmap(path, numpy.uint8, "r")
        tensors = read_header(path, data=False).tensors
        files.append({t.name: (t.type, data[t.offset : t.offset + t.bytes]) for t in tensors})
    mine, other = files
    if mine.keys() != other.keys():
        return f"tensors differ: {len(mine.keys() ^ other.keys())} names"
    kinds = sum(mine[name][0] != other[name][0] for name in mine)
    differ = sum(not numpy.array_equal(mine[name][1], other[name][1]) for name in mine)
    return f"{differ} of {len(mine)} tensors differ, {kinds} in type"
