"""`rounding: gptq` and `gptaq` from the moments to the file and the probes, by the rules' commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import ik
from quantmill import spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.files import writing
from quantmill.formats import ggufio
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.sensitivity import SensitivityRow, read_sensitivity

DATA = Path(__file__).parents[1] / "data"
IMATRIX = {"tiny-llama": DATA / "llama-imatrix-llama.gguf", "tiny-moe": DATA / "llama-imatrix-moe.gguf"}
CHUNKS, CONTEXT = 8, 128
USED = {"corpus": "c", "chunks": CHUNKS, "context": CONTEXT}


class Bench:
    """A folder in which one model's moments are measured and its files are made."""

    def __init__(self, folder: Path, name: str = "tiny-llama") -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.model, self.imatrix = folder, DATA / f"{name}.gguf", IMATRIX[name]
        self.engine: dict[str, str] = {}  # as in the configs of stages that run in another than mainline
        with Vocabulary(self.model) as vocabulary:
            tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
        for corpus, first in (("c", 0), ("t", CHUNKS)):
            with writing(folder / f"{corpus}.parquet") as file:
                chunks = tokens[first * CONTEXT : (first + CHUNKS) * CONTEXT].reshape(-1, CONTEXT)
                write_chunks(file, [Chunk("text", row, []) for row in chunks])
        self.stage("model.manifest", {}, manifest="m.tsv", facts="m.json", store=None)

    def command(self, stage: str, config: Any, store: str | None = "store", **options: object) -> list[str]:
        made = spec.make(stage, config, {"model": "m"}, engine="e")
        words = [sys.executable, "-m", "quantmill", stage, "--spec", made, "--model", str(self.model)]
        if store is not None:
            options |= {"store": store, "threads": options.get("threads", 1)}
        return words + [word for key, value in options.items() for word in (f"--{key}", str(value))]

    def refused(self, stage: str, config: Any, store: str | None = "store", **options: object) -> str:
        """The one line of a stage that fails."""
        command = self.command(stage, config, store, **options)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        return done.stderr.strip().splitlines()[-1]

    def stage(self, stage: str, config: Any, store: str | None = "store", **options: object) -> str:
        """Run a stage; its log."""
        command = self.command(stage, config, store, **options)
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def moments(self, store: str = "store") -> dict[str, Any]:
        self.stage("measure.moments", USED, store, corpus="c.parquet", report="moments.json")
        return dict(json.loads((self.folder / "moments.json").read_text("utf-8")))

    def plan(self, base: str, more: str = "") -> dict[str, Any]:
        (self.folder / "r.yaml").write_text(f"base: {base}\n{more}", encoding="utf-8")
        config = {"recipe": base, "imatrix": {"file": "i", "dataset": "t", "chunks": 1}}
        self.stage("recipe.plan", config, None, recipe="r.yaml", plan="p.tsv", report="p.json")
        return dict(json.loads((self.folder / "p.json").read_text("utf-8")))

    def options(self, out: str, rounding: str) -> tuple[dict[str, Any], dict[str, Any]]:
        config: dict[str, Any] = {"imatrix": {"file": "i", "dataset": "t", "chunks": 1}, **self.engine}
        options: dict[str, Any] = {"manifest": "m.tsv", "plan": "p.tsv", "report": "p.json"}
        options |= {"imatrix": self.imatrix, "gguf": out, "facts": f"{out}.json"}
        if rounding != "nearest":
            config["rounding"] = rounding
            options |= {"moments": "moments.json", "calibration": "c.parquet"}
        if rounding == "gptaq":
            options |= {"cross": "cross.json"}
        return config, options

    def write(self, out: str, rounding: str = "gptq", store: str = "store", threads: int = 1) -> Path:
        config, options = self.options(out, rounding)
        self.stage("quantize.write", config, store, **options, threads=threads)
        return self.folder / out

    def cross(self, quantized: str, store: str = "store", report: str = "cross.json") -> dict[str, Any]:
        """The cross moments of a file of rounding gptq."""
        options = {"quantized": quantized, "facts": f"{quantized}.json", "moments": "moments.json"}
        self.stage("measure.cross", USED, store, **options, corpus="c.parquet", report=report)
        return dict(json.loads((self.folder / report).read_text("utf-8")))

    def measure(self, gguf: str, out: str, **options: object) -> None:
        """The divergence of a file."""
        config = USED | {"chunks": 4, "corpus": "t"} | self.engine
        command = self.command("measure.divergence", config, **options)
        model = command.index("--model") + 1
        command[model] = gguf
        command += ["--facts", f"{gguf}.json", "--out", out]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def sensitivity(self, rounding: str) -> list[SensitivityRow]:
        chunks = {"corpus": "t", "chunks": 2, "context": CONTEXT, "minutes": 60, "types": ["q3_K"]}
        options: dict[str, Any] = {"manifest": "m.tsv", "imatrix": self.imatrix, "corpus": "t.parquet"}
        options |= {"out": "s.tsv", "report": "s.json"}
        if rounding == "gptq":
            chunks["rounding"] = "gptq"
            options |= {"moments": "moments.json", "calibration": "c.parquet"}
        self.stage("sensitivity.measure", chunks, **options)
        return read_sensitivity(self.folder / "s.tsv")


def tensors(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Each tensor's type and bytes, by gguf-py."""
    return {t.name: (t.tensor_type.name, np.array(t.data)) for t in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize(
    ("name", "base"),
    [
        *(("tiny-llama", base) for base in ("Q4_K_M", "IQ3_XXS", "nvfp4")),
        *(("tiny-moe", base) for base in ("Q3_K_M", "IQ2_M", "mxfp4")),
    ],
)
def test_a_file_is_a_stock_one_of_the_planned_size(tmp_path: Path, name: str, base: str) -> None:
    bench = Bench(tmp_path, name)
    report = bench.moments()
    planned = bench.plan(base)
    made, plain = bench.write("gptq.gguf"), bench.write("nearest.gguf", "nearest")
    assert made.stat().st_size == plain.stat().st_size
    if name == "tiny-llama":  # the plan counts the entries of an imatrix of this very model
        assert made.stat().st_size == planned["file_bytes"]
    # llama.cpp loaded it and answered
    with_moments = {weight for one in report["inputs"] for weight in one["weights"]}
    ours, theirs = tensors(made), tensors(plain)
    changed = {name for name in ours if not np.array_equal(ours[name][1], theirs[name][1])}
    assert {name: kind for name, (kind, _) in ours.items()} == {
        name: kind for name, (kind, _) in theirs.items()
    }
    quantized = {name for name, (kind, _) in ours.items() if kind not in ("F16", "F32")}
    assert changed == quantized & with_moments
    assert "token_embd.weight" in quantized - changed


@pytest.mark.parametrize(
    ("name", "base"),
    [("tiny-llama", "Q3_K_M"), ("tiny-llama", "nvfp4"), ("tiny-moe", "IQ3_XXS"), ("tiny-moe", "Q4_0")],
)
def test_gptaq_rounds_the_last_weights_of_either_half_anew(tmp_path: Path, name: str, base: str) -> None:
    bench = Bench(tmp_path, name)
    bench.moments()
    bench.plan(base)
    gptq = bench.write("gptq.gguf")
    report = bench.cross("gptq.gguf")
    made = bench.write("gptaq.gguf", "gptaq")
    assert made.stat().st_size == gptq.stat().st_size
    ours, theirs = tensors(made), tensors(gptq)
    changed = {name for name in ours if not np.array_equal(ours[name][1], theirs[name][1])}
    assert changed == {weight for one in report["inputs"] for weight in one["weights"]}
    assert {name.split(".", 2)[2] for name in changed} <= {
        *("attn_output.weight", "ssm_out.weight", "ffn_down.weight"),
        *("ffn_down_exps.weight", "ffn_down_shexp.weight"),
    }
    assert report["quantized"] == json.loads((tmp_path / "gptq.gguf.json").read_text("utf-8"))["sha256"]
    # whatever the threads; and what is measured already is not measured again
    assert bench.write("one.gguf", "gptaq", threads=2).read_bytes() == made.read_bytes()
    again = bench.cross("gptq.gguf", report="again.json")
    assert again | {"seconds": 0} == report | {"seconds": 0} and again["seconds"] == 0


def test_gptaq_is_nearer_to_the_source_than_gptq(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.moments()
    bench.plan("q3_K", "rules: [{match: 'token_embd[.]weight|output[.]weight', type: q8_0}]\n")
    klds = {}
    for rounding in ("gptq", "gptaq"):
        out = f"{rounding}.gguf"
        bench.write(out, rounding)
        if rounding == "gptq":
            bench.cross(out)
        options = {"reference": bench.model, "reference-facts": "m.json", "corpus": "t.parquet"}
        bench.measure(out, f"{rounding}.kld.json", **options)
        klds[rounding] = json.loads((tmp_path / f"{rounding}.kld.json").read_text("utf-8"))["kld"]["mean"]
    assert klds["gptaq"] < 0.95 * klds["gptq"]


IK = {
    **{"attn_q": "iq2_k", "attn_k": "iq5_k", "attn_v": "iq6_k", "attn_output": "iq4_k"},
    **{"ffn_gate": "iq2_ks", "ffn_up": "iq3_ks", "ffn_down": "iq4_ks", "output": "q6_0"},
}
"""Types that only ik_llama.cpp has, by role; all other weights get iq3_k."""


def ik_recipe() -> str:
    rules = ", ".join(f"{{role: {role}, type: {kind}}}" for role, kind in IK.items())
    return f"engine: ik\nrules: [{rules}, {{role: token_embd, type: q8_0}}]\n"


@ik.NEEDED
def test_ik_loads_a_file_of_its_own_types_and_is_nearer_to_the_source(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    report = bench.moments()
    bench.engine = {"engine": "ik"}
    planned = bench.plan("iq3_k", ik_recipe())
    klds, headers = {}, {}
    for rounding in ("nearest", "gptq"):
        out = f"{rounding}.gguf"
        made = bench.write(out, rounding)
        assert made.stat().st_size == planned["file_bytes"]
        headers[rounding] = ggufio.read_header(made, data=False)
        options = {"reference": bench.model, "reference-facts": "m.json", "corpus": "t.parquet"}
        bench.measure(out, f"{rounding}.kld.json", **options)
        klds[rounding] = json.loads((tmp_path / f"{rounding}.kld.json").read_text("utf-8"))["kld"]["mean"]
    types = {tensor.name: tensor.type for tensor in headers["gptq"].tensors}
    assert set(IK.values()) < set(types.values())
    ours, theirs = (
        {t.name: (tmp_path / f"{rounding}.gguf").read_bytes()[t.offset :][: t.bytes] for t in header.tensors}
        for rounding, header in headers.items()
    )
    with_moments = {weight for one in report["inputs"] for weight in one["weights"]}
    assert {name for name in ours if ours[name] != theirs[name]} == with_moments & set(types)
    assert klds["gptq"] < 0.9 * klds["nearest"]


@ik.NEEDED
def test_second_moments_that_the_store_lost_are_not_measured_in_a_process_of_ik(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.moments()
    bench.engine = {"engine": "ik"}
    bench.plan("iq4_ks", "engine: ik\n")
    config, options = bench.options("x.gguf", "gptq")
    line = bench.refused("quantize.write", config, "empty", **options)
    assert re.fullmatch(
        r"error: output\.weight: moments\.json: the store has lost its second moments, which engine ik "
        "cannot measure; delete it to have it made again, and give the store more room",
        line,
    )
    assert not (tmp_path / "x.gguf").exists()
    bench.moments("empty")
    assert bench.write("x.gguf", "gptq", "empty").read_bytes() == bench.write("y.gguf").read_bytes()


@ik.NEEDED
def test_a_type_of_ik_without_a_grid_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "r.yaml").write_text("engine: ik\nbase: iq4_kss\n", encoding="utf-8")
    config = {"recipe": "k", "imatrix": {"file": "i", "dataset": "t", "chunks": 1}, "rounding": "gptq"}
    line = bench.refused("recipe.plan", config, None, recipe="r.yaml", plan="p.tsv", report="p.json")
    assert "r.yaml: iq4_kss has no grid to which errors can be fed back (" in line


def test_cross_moments_that_the_store_lost_are_measured_again_when_the_report_is_deleted(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path)
    bench.moments()
    bench.plan("Q4_0")
    bench.write("gptq.gguf")
    bench.cross("gptq.gguf")
    config, options = bench.options("x.gguf", "gptaq")
    line = bench.refused("quantize.write", config, "empty", **options)
    assert line.startswith(
        "error: blk.0.attn_output.weight: cross.json: the store has lost its cross moments;"
    )
    assert not (tmp_path / "x.gguf").exists()
    bench.cross("gptq.gguf", "empty")
    assert bench.write("x.gguf", "gptaq", "empty").read_bytes() == bench.write("y.gguf", "gptaq").read_bytes()


def test_the_bytes_do_not_depend_on_the_threads_nor_on_the_store(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.moments()
    bench.plan("Q4_K_M")
    first = bench.write("a.gguf").read_bytes()
    # another store has no moments: they are measured again, on the way
    assert bench.write("b.gguf", store="empty", threads=2).read_bytes() == first


def test_finished_moments_are_not_measured_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    report = bench.moments()
    log = bench.stage("measure.moments", USED, corpus="c.parquet", report="again.json")
    count = len(report["inputs"])
    assert f"the second moments of {count} inputs; 0 measured, {count} from the store" in log
    again = json.loads((tmp_path / "again.json").read_text("utf-8"))
    assert {**again, "seconds": 0} == {**report, "seconds": 0}


def test_probes_see_the_rounding(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.moments()
    nearest, gptq = bench.sensitivity("nearest"), bench.sensitivity("gptq")
    layers = [row.layer >= 0 for row in gptq]
    assert [(row.name, row.type) for row in nearest] == [(row.name, row.type) for row in gptq]

    def total(rows: list[SensitivityRow]) -> float:
        return sum(row.kld for row, inside in zip(rows, layers, strict=True) if inside)

    assert total(gptq) < 0.8 * total(nearest)
    for one, other in zip(nearest, gptq, strict=True):
        assert (one.kld == other.kld) == (one.name == "token_embd.weight")


def test_moments_of_another_model_or_corpus_are_refused(tmp_path: Path) -> None:
    bench, other = Bench(tmp_path / "llama"), Bench(tmp_path / "moe", "tiny-moe")
    bench.moments()
    other.moments()
    bench.plan("Q4_K_M")
    config, options = bench.options("x.gguf", "gptq")
    line = bench.refused("quantize.write", config, **options | {"moments": other.folder / "moments.json"})
    assert "they are of another model; delete it to have it made again" in line
    line = bench.refused("quantize.write", config, **options | {"calibration": "t.parquet"})
    assert line == (
        "error: moments.json: is of another corpus, of another model, or of another version of the engine; "
        "delete it to have it made again"
    )
    assert not (tmp_path / "llama" / "x.gguf").exists()


def test_a_damaged_source_has_no_moments(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = bench.model.read_bytes()
    tensor = next(t for t in ggufio.read_header(bench.model).tensors if t.name == "blk.0.ffn_norm.weight")
    broken = bytearray(data)
    broken[tensor.offset : tensor.offset + 4] = np.array([np.nan], "<f4").tobytes()
    bench.model = tmp_path / "broken.gguf"
    bench.model.write_bytes(broken)
    line = bench.refused("measure.moments", USED, corpus="c.parquet", report="moments.json")
    assert "non-finite activations in blk.0.ffn_gate.weight; the source is damaged" in line
    assert not (tmp_path / "moments.json").exists()
