"""The stage `quantize.write` as the rules call it: its file, its units, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

import ik
import limits
import models
import native
from quantmill import files, spec
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.files import writing
from quantmill.formats import ggufio
from quantmill.formats import imatrix as formats
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.plan import PlanRow
from quantmill.imatrix.imported import checked
from quantmill.model.roles import role_of
from quantmill.quantize import write

DATA = Path(__file__).parents[1] / "data"
LLAMA = DATA / "tiny-llama.gguf"
IMATRIX = DATA / "llama-imatrix-llama.gguf"
MOE_IMATRIX = DATA / "llama-imatrix-moe.gguf"


class Bench:
    """A folder in which one model is quantized."""

    def __init__(self, folder: Path, model: Path = LLAMA, imatrix: Path | None = None) -> None:
        self.folder, self.model, self.imatrix = folder, model, imatrix
        self.stage(
            "model.manifest", {}, "--model", model, "--manifest", self / "m.tsv", "--facts", self / "m.json"
        )

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def command(self, stage: str, config: dict, *arguments: object) -> list[str]:
        made = spec.make(stage, config, {}, engine="e")
        return [sys.executable, "-m", f"quantmill.{stage}", "--spec", made, *map(str, arguments)]

    def stage(self, stage: str, config: dict, *arguments: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.command(stage, config, *arguments), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done

    def plan(self, name: str, base: str, *rules: str) -> None:
        """Write the recipe and have it resolved."""
        listed = "".join(f"  - {rule}\n" for rule in rules)
        (self / f"{name}.yaml").write_text(
            f"base: {base}\nrules:\n{listed}" if rules else f"base: {base}\n", encoding="utf-8"
        )
        self.stage(
            "recipe.plan",
            {"recipe": name, "imatrix": self.facts},
            "--model",
            self.model,
            "--recipe",
            self / f"{name}.yaml",
            "--plan",
            self / f"{name}.tsv",
            "--report",
            self / f"{name}.json",
        )

    @property
    def facts(self) -> dict | None:
        return self.imatrix and {"file": "tiny-imatrix.gguf", "dataset": "text.txt", "chunks": 12}

    def quantization(self, name: str, out: Path | None = None) -> list[str]:
        """The command that executes a plan."""
        out = out or self / f"{name}.gguf"
        imatrix = ["--imatrix", self.imatrix] if self.imatrix else []
        return self.command(
            "quantize.write",
            {"imatrix": self.facts},
            "--model",
            self.model,
            "--manifest",
            self / "m.tsv",
            "--plan",
            self / f"{name}.tsv",
            "--report",
            self / f"{name}.json",
            *imatrix,
            "--gguf",
            out,
            "--facts",
            self / f"{name}.gguf.json",
            "--store",
            self / "store",
            "--threads",
            2,
        )

    def quantize(self, name: str) -> tuple[int, int]:
        """Execute a plan: units made and reused."""
        done = subprocess.run(self.quantization(name), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        result = re.search(r"(\d+) units made, (\d+) reused", done.stderr)
        assert result is not None
        return int(result[1]), int(result[2])

    def fails(self, name: str, out: Path | None = None) -> str:
        """Execute a plan that cannot be: its one line."""
        done = subprocess.run(self.quantization(name, out), capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
        return lines[0]

    def units(self) -> list[Path]:
        return [path for path in (self / "store").glob("units/*/*") if not path.name.startswith(".")]


@pytest.mark.parametrize("preset", ["Q4_K_M", "Q3_K_M", "Q8_0"])
def test_the_file_is_llama_quantize_s_own(tmp_path, preset):
    """Header, order and padding too: the whole file, to the byte."""
    bench = Bench(tmp_path)
    bench.plan("x", preset)
    bench.quantize("x")
    native.quantize(
        LLAMA, tmp_path / "theirs.gguf", {"Q4_K_M": 15, "Q3_K_M": 12, "Q8_0": 7}[preset], None, None
    )
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    facts = json.loads((tmp_path / "x.gguf.json").read_text("utf-8"))
    assert facts["sha256"] == spec.file_sha256(tmp_path / "x.gguf")
    assert facts["bytes"] == (tmp_path / "x.gguf").stat().st_size
    assert facts["bytes"] == json.loads((tmp_path / "x.json").read_text("utf-8"))["file_bytes"]


def test_the_imatrix_is_used_and_named_in_the_header(tmp_path):
    bench = Bench(tmp_path, imatrix=IMATRIX)
    bench.plan("x", "IQ3_XXS")
    bench.quantize("x")
    entries = formats.read_gguf(IMATRIX).entries
    np.savez(tmp_path / "i.npz", **{name: entry.mean().ravel() for name, entry in entries.items()})
    native.quantize(LLAMA, tmp_path / "theirs.gguf", 23, None, tmp_path / "i.npz")
    ours, theirs = (ggufio.read_header(tmp_path / f"{name}.gguf") for name in ("x", "theirs"))
    data = [(header.path.read_bytes()[header.tensors[0].offset :]) for header in (ours, theirs)]
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    assert data[0] == data[1]
    assert ours.value("quantize.imatrix.file") == "tiny-imatrix.gguf"
    assert ours.value("quantize.imatrix.dataset") == "text.txt"
    assert ours.value("quantize.imatrix.entries_count") == len(entries)
    assert ours.value("quantize.imatrix.chunks_count") == 12
    plan = json.loads((tmp_path / "x.json").read_text("utf-8"))
    assert plan["file_bytes"] == (tmp_path / "x.gguf").stat().st_size


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_a_published_imatrix_gives_llama_quantize_s_bytes(tmp_path, form):
    """Each form's values taken as llama-quantize takes them, of experts too (but for under-sampled ones)."""
    source, published = DATA / "tiny-moe.gguf", MOE_IMATRIX.with_suffix(f".{form}")
    if form == "dat":
        values = ik.read_dat(published)
    else:
        read = gguf.GGUFReader(published)
        arrays = {tensor.name: tensor.data.reshape(tensor.shape[::-1]) for tensor in read.tensors}
        names = [name.removesuffix(".counts") for name in arrays if name.endswith(".counts")]
        values = {n: (arrays[f"{n}.in_sum2"] / arrays[f"{n}.counts"]).ravel() for n in names}
    imatrix, _ = checked(formats.read(published), ggufio.read_header(source), published)
    formats.write_gguf(tmp_path / "imatrix.gguf", imatrix)
    bench = Bench(tmp_path, source, imatrix=tmp_path / "imatrix.gguf")
    bench.plan("x", "IQ3_XXS")
    bench.quantize("x")
    np.savez(tmp_path / "i.npz", **values)
    native.quantize(source, tmp_path / "theirs.gguf", 23, None, tmp_path / "i.npz")
    ours, theirs = (ggufio.read_header(tmp_path / f"{name}.gguf") for name in ("x", "theirs"))
    under_sampled = {
        name for name, entry in imatrix.entries.items() if (entry.counts < formats.UNDER_SAMPLED).any()
    }
    assert bool(under_sampled) == (form == "gguf")
    data = [header.path.read_bytes() for header in (ours, theirs)]
    for one, other in zip(ours.tensors, theirs.tensors, strict=True):
        same = (
            data[0][one.offset : one.offset + one.bytes] == data[1][other.offset : other.offset + other.bytes]
        )
        assert same or one.name in under_sampled, one.name
    assert ours.value("quantize.imatrix.dataset") == "text.txt"


def test_recipes_share_their_tensors(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("one", "Q4_K_M")
    made, _ = bench.quantize("one")
    assert made == 16
    bench.plan("two", "Q4_K_M", "{role: attn_q, layers: [1], type: q8_0}")
    assert bench.quantize("two") == (1, 15)
    bench.plan("two", "Q4_K_M", "{role: attn_q, layers: [1], type: q8_0}", "{role: ffn_up, type: q5_K}")
    assert bench.quantize("two") == (2, 14)
    assert bench.quantize("two") == (0, 16)


def test_a_tensor_is_written_once_and_read_from_the_file_it_is_in(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    assert bench.quantize("x") == (16, 0)
    whole, times = (tmp_path / "x.gguf").read_bytes(), (tmp_path / "x.gguf").stat().st_mtime_ns
    (tmp_path / "y.tsv").write_bytes((tmp_path / "x.tsv").read_bytes())
    (tmp_path / "y.json").write_bytes((tmp_path / "x.json").read_bytes())
    assert bench.quantize("y") == (0, 16)
    assert (tmp_path / "y.gguf").read_bytes() == whole
    assert (tmp_path / "x.gguf").stat().st_mtime_ns == times
    (pack,) = (tmp_path / "store" / "packs").glob("*/data")
    assert pack.samefile(tmp_path / "x.gguf")
    assert sum(path.stat().st_size for path in bench.units()) < 2000
    for name in ("x.gguf", "y.gguf"):
        (tmp_path / name).unlink()
    assert bench.quantize("x") == (0, 16)
    assert (tmp_path / "x.gguf").read_bytes() == whole


def test_where_the_store_is_on_another_file_system_it_holds_the_tensors_itself(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        (tmp_path / "store").symlink_to(folder)
        assert bench.quantize("x") == (16, 0)
        whole = (tmp_path / "x.gguf").read_bytes()
        assert list((tmp_path / "store" / "packs").iterdir()) == []
        (tmp_path / "x.gguf").unlink()
        assert bench.quantize("x") == (0, 16)
    assert (tmp_path / "x.gguf").read_bytes() == whole


def test_a_lost_and_a_damaged_unit_are_made_again(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    bench.quantize("x")
    before = (tmp_path / "x.gguf").read_bytes()
    lost, damaged = bench.units()[:2]
    lost.unlink()
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 255
    damaged.write_bytes(data)
    assert bench.quantize("x") == (2, 14)
    assert (tmp_path / "x.gguf").read_bytes() == before


def test_a_killed_run_resumes_where_it_stood(tmp_path):
    bench = Bench(tmp_path, imatrix=IMATRIX)
    bench.plan("x", "IQ2_XS")
    process = subprocess.Popen(bench.quantization("x"), stderr=subprocess.DEVNULL)
    while len(bench.units()) < 3 and process.poll() is None:
        time.sleep(0.001)
    assert process.poll() is None, "the run was over before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "x.gguf").exists()
    finished = len(bench.units())
    made, reused = bench.quantize("x")
    assert (made, reused) == (16 - finished, finished)
    resumed = (tmp_path / "x.gguf").read_bytes()
    whole = Bench(tmp_path / "whole", imatrix=IMATRIX)
    whole.plan("x", "IQ2_XS")
    whole.quantize("x")
    assert (tmp_path / "whole" / "x.gguf").read_bytes() == resumed


def test_starved_experts_are_given_their_layer_s_mean_and_the_rest_is_llama_quantize_s(tmp_path):
    entries = dict(formats.read_gguf(MOE_IMATRIX).entries)
    names = [name for name in entries if "_exps" in name]
    under_sampled = {
        name: (entries[name].counts < formats.UNDER_SAMPLED).nonzero()[0].tolist() for name in names
    }
    assert {tuple(result) for result in under_sampled.values()} == {(), (1, 2)}
    bench = Bench(tmp_path, DATA / "tiny-moe.gguf", imatrix=MOE_IMATRIX)
    bench.plan("x", "IQ3_XXS")
    bench.quantize("x")
    theirs = tmp_path / "theirs.gguf"
    for fed in (False, True):
        given = {name: entry.made_up() if fed else entry for name, entry in entries.items()}
        np.savez(tmp_path / "i.npz", **{name: entry.mean().ravel() for name, entry in given.items()})
        native.quantize(bench.model, theirs, 23, None, tmp_path / "i.npz")
        one, other = (ggufio.read_header(path) for path in (tmp_path / "x.gguf", theirs))
        data = [header.path.read_bytes() for header in (one, other)]
        pairs = zip(one.tensors, other.tensors, strict=True)
        differing = {
            t.name
            for t, o in pairs
            if data[0][t.offset : t.offset + t.bytes] != data[1][o.offset : o.offset + t.bytes]
        }
        # with the means as they are all but the under-sampled ones' tensors are the same; with ours all
        assert differing == (set() if fed else {n for n in names if under_sampled[n]})


def test_an_imatrix_of_fewer_experts_is_refused(tmp_path):
    imatrix = formats.read_gguf(MOE_IMATRIX)
    name = "blk.0.ffn_up_exps.weight"
    entry = imatrix.entries[name]
    fewer = {**imatrix.entries, name: formats.Entry(entry.in_sum2[:3], entry.counts[:3])}
    formats.write_gguf(tmp_path / "i.gguf", formats.Imatrix("text.txt", 12, 128, fewer))
    bench = Bench(tmp_path, DATA / "tiny-moe.gguf", imatrix=tmp_path / "i.gguf")
    bench.plan("x", "Q4_K_M")
    line = bench.fails("x")
    assert "blk.0.ffn_up_exps.weight: the imatrix has 3 experts for it, not 4: it is of another model" in line
    assert not (tmp_path / "x.gguf").exists() and not bench.units()


def test_an_imatrix_of_another_model_is_refused(tmp_path):
    bench = Bench(tmp_path, imatrix=DATA / "llama-imatrix-moe.gguf")
    bench.plan("x", "Q4_K_M")
    line = bench.fails("x")
    assert "another model" in line
    assert not (tmp_path / "x.gguf").exists() and not bench.units()


def test_a_recipe_may_do_without_the_imatrix(tmp_path):
    bench = Bench(tmp_path, imatrix=IMATRIX)
    bench.plan("plain", "Q4_K_M\nimatrix: none")
    bench.quantize("plain")
    native.quantize(LLAMA, tmp_path / "theirs.gguf", 15, None, None)
    assert (tmp_path / "plain.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_a_type_without_its_importance_values_is_refused(tmp_path):
    imatrix = formats.read_gguf(IMATRIX)
    fewer = {name: entry for name, entry in imatrix.entries.items() if name != "blk.1.ffn_up.weight"}
    formats.write_gguf(tmp_path / "i.gguf", formats.Imatrix("text.txt", 12, 128, fewer))
    bench = Bench(tmp_path, imatrix=tmp_path / "i.gguf")
    bench.plan("x", "IQ2_XS")
    assert "blk.1.ffn_up.weight" in bench.fails("x")
    assert not bench.units()


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small tmpfs here")
    try:
        bench = Bench(tmp_path)
        bench.plan("x", "Q4_K_M")
        # Enough is promised and not there: what is left is less than the plan needs.
        assert "free some space" in bench.fails("x", small / "x.gguf")
        report = json.loads((tmp_path / "x.json").read_text("utf-8"))
        (tmp_path / "x.json").write_text(json.dumps(report | {"file_bytes": 1000}), encoding="utf-8")
        line = bench.fails("x", small / "x.gguf")
        assert "No space left on device" in line and "x.gguf" in line
        assert not list(small.iterdir())
        assert len(bench.units()) > 0
    finally:
        subprocess.run(["umount", small], check=True)


def test_units_never_take_the_room_that_the_file_needs(tmp_path, monkeypatch):
    """On a disk with room for the file and 100 kB; where no link can be made, so that both are written."""
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    size = json.loads((tmp_path / "x.json").read_text("utf-8"))["file_bytes"]

    def used() -> int:
        inodes = {path.stat() for path in tmp_path.rglob("*") if not path.is_dir()}
        return sum(stat.st_size for stat in inodes) - before

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    before = 0
    before = used()
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size + 100_000 - used()))
    words = bench.quantization("x")
    arguments = [*words[words.index("--spec") :], "--log", str(tmp_path / "log")]
    monkeypatch.setattr(sys, "argv", ["write", *arguments])
    monkeypatch.delitem(sys.modules, "quantmill.quantize.write")
    runpy.run_module("quantmill.quantize.write", run_name="__main__")
    assert (tmp_path / "x.gguf").stat().st_size == size
    assert 0 < sum(path.stat().st_size for path in bench.units()) <= 100_000
    log = (tmp_path / "log").read_text("utf-8")
    assert log.count("the disk has room for the output alone") == 1


# --- what needs importance values -----------------------------------------------


@pytest.mark.parametrize("name", ["token_embd.weight", "per_layer_token_embd.weight", "output.weight"])
def test_what_a_plan_may_have_without_importance_values_is_quantized(name: str) -> None:
    """The names that `recipe.plan` exempts are those that this stage exempts."""
    row = PlanRow(name, role_of(name), -1, (256, 8), "f32", "iq2_s", 0, "")
    source = SimpleNamespace(tensors={name: SimpleNamespace(shape=(256, 8), type="f32")}, sha256={name: ""})
    (task,) = write.tasks([row], source, None)
    assert (task.type, task.importance) == ("iq2_s", None)
    other = replace(row, name="blk.0.attn_q.weight")
    source.tensors[other.name], source.sha256[other.name] = source.tensors[name], ""
    with pytest.raises(QuantmillError, match=r"attn_q\.weight: iq2_s needs an importance matrix"):
        write.tasks([other], source, None)


def test_thousands_of_tensors_in_many_files_need_few_open_files(tmp_path):
    models.write_llama(tmp_path / "m.gguf", width=32, layers=240, loads=True, split_max_tensors=20)
    first = min(tmp_path.glob("m-*.gguf"))
    header = ggufio.read_header(first)
    seen = formats.Entry(np.ones((1, 32), np.float32), np.ones(1, np.float32))
    inputs = {t.name: seen for t in header.tensors if t.shape[:2] == (32, 32)}
    formats.write_gguf(tmp_path / "i.gguf", formats.Imatrix("text.txt", 12, 128, inputs))
    assert (len(header.tensors), len(header.shards), len(inputs)) == (2162, 109, 961)
    with limits.few_files():
        bench = Bench(tmp_path, first, tmp_path / "i.gguf")
        bench.plan("x", "q4_0")
        made, _ = bench.quantize("x")
        os.unlink(tmp_path / "x.gguf")
        assert bench.quantize("x") == (0, made) and made > 1600
    assert len(ggufio.read_header(tmp_path / "x.gguf").tensors) == 2162


def test_a_plan_of_many_nvfp4_weights_holds_none_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAPPED_ABOVE", 0)  # as large ones are, each with an open file
    bench = Bench(tmp_path, models.write_llama(tmp_path / "m.gguf", width=64, layers=20))
    bench.plan("x", "nvfp4")
    with limits.few_files():
        source = write.Source(bench.model, bench / "m.tsv")
        todo = write.tasks(write.read_plan(bench / "x.tsv"), source, None)
        assert sum(len(task.together) for task in todo) > 200
        weight = todo[-1].together[0]
        assert weight.data().nbytes == source.tensors[weight.name].bytes


def split(bench: Bench, name: str, most: int) -> Path:
    """Execute a plan into files of at most `most` bytes: their folder."""
    words = bench.quantization(name, bench / name)
    words[words.index("--spec") + 1] = spec.make(
        "quantize.write", {"imatrix": bench.facts, "split": most}, {}, engine="e"
    )
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return bench / name


def perplexity(bench: Bench, model: Path, facts: str) -> list[float]:
    """The nll of each chunk of some text, as the stage measures it."""
    if not (bench / "c.parquet").exists():
        with Vocabulary(LLAMA) as vocabulary, writing(bench / "c.parquet") as file:
            tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))[:256].reshape(2, 128)
            write_chunks(file, [Chunk("text", row, []) for row in tokens])
    bench.stage(
        "measure.perplexity",
        {"corpus": "c", "chunks": 2, "context": 128},
        "--model",
        model,
        "--facts",
        bench / facts,
        "--corpus",
        bench / "c.parquet",
        "--out",
        bench / "ppl.json",
        "--store",
        bench / "store",
    )
    return json.loads((bench / "ppl.json").read_text("utf-8"))["nll"]


def test_each_part_of_a_split_file_holds_its_tensors_for_the_store(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    parts = {path.stat().st_ino for path in split(bench, "x", 500_000).iterdir()}
    assert {path.stat().st_ino for path in (tmp_path / "store" / "packs").glob("*/data")} == parts
    assert bench.quantize("x") == (0, 16)


def test_a_split_file_holds_the_whole_ones_tensors_and_llama_cpp_loads_it(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    bench.quantize("x")
    whole, folder = ggufio.read_header(tmp_path / "x.gguf"), split(bench, "x", 500_000)
    facts = json.loads((tmp_path / "x.gguf.json").read_text("utf-8"))
    (tmp_path / "whole.json").write_text('{"sha256": "whole"}', encoding="utf-8")
    names = [f"x/x-{n:05}-of-{len(facts['parts']):05}.gguf" for n in range(1, len(facts["parts"]) + 1)]
    assert [part["file"] for part in facts["parts"]] == names and len(names) > 2
    assert facts["file"] == names[0]
    for part in facts["parts"]:
        path = tmp_path / part["file"]
        assert (part["bytes"], part["sha256"]) == (path.stat().st_size, spec.file_sha256(path))
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    parts = ggufio.read_header(tmp_path / names[0])
    assert [t[:5] for t in parts.tensors] == [t[:5] for t in whole.tensors]
    bytes_of = [path.read_bytes() for path in (whole.path, *parts.shards)]
    for one, other in zip(whole.tensors, parts.tensors, strict=True):
        data = bytes_of[1 + other.shard][other.offset : other.offset + other.bytes]
        assert data == bytes_of[0][one.offset : one.offset + one.bytes]
    # the same keys in the first part, and the number of each
    assert {k: v for k, v in parts.kv.items() if not k.startswith("split.")} == dict(whole.kv)
    assert perplexity(bench, folder, "x.gguf.json") == perplexity(bench, whole.path, "whole.json")


def test_a_file_that_fits_is_not_split(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    folder = split(bench, "x", 10**9)
    (path,) = folder.iterdir()
    assert path.name == "x.gguf"
    native.quantize(LLAMA, tmp_path / "theirs.gguf", 15, None, None)
    assert path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_a_killed_split_leaves_nothing_under_its_name_and_a_second_one_replaces_the_first(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    first = {path.name for path in split(bench, "x", 500_000).iterdir()}
    second = {path.name for path in split(bench, "x", 1_500_000).iterdir()}
    assert len(second) < len(first) and not first & second
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    unit = bench.units()[0]
    unit.unlink()
    (tmp_path / "m.tsv").write_text(
        (tmp_path / "m.tsv").read_text("utf-8").replace("output.weight", "other.weight"), encoding="utf-8"
    )
    words = bench.quantization("x", tmp_path / "x")
    assert subprocess.run(words, capture_output=True).returncode == 1
    assert {path.name for path in (tmp_path / "x").iterdir()} == second


METADATA = {
    "general.name": "Tiny, Größe S",
    "general.tags": ["code", "test"],
    "general.base_model.count": 1,
    "general.sampling.temp": 0.7,
    "general.sampling.top_k": 20,
    "quantize.recipe": "x",
}


def repaired(bench: Bench, name: str, metadata: dict, out: Path, **more: int) -> tuple[dict, str]:
    """Execute a plan with metadata of the config: the report, and the last line of the log."""
    words = bench.quantization(name, out)
    settings = {"imatrix": bench.facts, "metadata": metadata, **more}
    words[words.index("--spec") + 1] = spec.make("quantize.write", settings, {}, engine="e")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((bench / f"{name}.gguf.json").read_text("utf-8")), done.stderr.splitlines()[-1]


def test_metadata_change_nothing_else_and_are_repaired_without_quantizing(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    bench.quantize("x")
    plain = json.loads((tmp_path / "x.gguf.json").read_text("utf-8"))
    before = perplexity(bench, tmp_path / "x.gguf", "x.gguf.json")
    facts, line = repaired(bench, "x", METADATA, tmp_path / "new.gguf")
    assert line.endswith("; 0 units made, 16 reused")
    # measurements know it by what it would be without
    assert facts["measured_as"] == plain["sha256"] == spec.file_sha256(tmp_path / "x.gguf")
    assert facts["sha256"] == spec.file_sha256(tmp_path / "new.gguf") != plain["sha256"]
    assert perplexity(bench, tmp_path / "new.gguf", "x.gguf.json") == before
    assert json.loads((tmp_path / "ppl.json").read_text("utf-8"))["model_sha256"] == plain["sha256"]
    old, new = (ggufio.read_header(tmp_path / name) for name in ("x.gguf", "new.gguf"))
    changed = {key for key in new.kv if old.kv.get(key) != new.kv[key]}
    assert changed == METADATA.keys() and old.kv.keys() - new.kv.keys() == set()
    data = [header.path.read_bytes()[header.tensors[0].offset :] for header in (old, new)]
    assert data[0] == data[1]
    read = gguf.GGUFReader(tmp_path / "new.gguf")
    assert {key: read.get_field(key).contents() for key in METADATA} == METADATA | {
        "general.sampling.temp": pytest.approx(0.7)
    }
    assert read.get_field("general.sampling.top_k").types == [gguf.GGUFValueType.INT32]
    assert read.get_field("general.base_model.count").types == [gguf.GGUFValueType.UINT32]


def test_a_chat_template_of_the_config_is_measured_anew(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q8_0")
    facts, _ = repaired(bench, "x", {"tokenizer.chat_template": "{{ messages }}"}, tmp_path / "x.gguf")
    assert "measured_as" not in facts
    facts, _ = repaired(
        bench, "x", METADATA | {"tokenizer.chat_template": "{{ messages }}"}, tmp_path / "y.gguf"
    )
    assert facts["measured_as"] == spec.file_sha256(tmp_path / "x.gguf")
    assert ggufio.read_header(tmp_path / "y.gguf").text("tokenizer.chat_template") == "{{ messages }}"


def test_metadata_of_a_split_file_are_in_its_first_part(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    split(bench, "x", 500_000)
    plain = json.loads((tmp_path / "x.gguf.json").read_text("utf-8"))
    facts, line = repaired(bench, "x", METADATA, tmp_path / "x", split=500_000)
    assert line.endswith("; 0 units made, 16 reused") and facts["measured_as"] == plain["sha256"]
    assert facts["parts"][0]["sha256"] != plain["parts"][0]["sha256"]
    assert facts["parts"][1:] == plain["parts"][1:]


def test_a_header_of_its_own_is_all_that_other_metadata_change(tmp_path):
    bench = Bench(tmp_path)
    bench.plan("x", "Q4_K_M")
    plain, _ = repaired(bench, "x", {}, tmp_path / "x", split=500_000, header=True)
    first = ggufio.read_header(tmp_path / plain["file"])
    assert [t for t in first.tensors if t.shard == 0] == [] and len(first.tensors) == 21
    assert first.number("split.count") == len(plain["parts"])
    assert plain["parts"][0]["bytes"] < 200_000 < plain["parts"][1]["bytes"]
    facts, _ = repaired(bench, "x", METADATA, tmp_path / "x", split=500_000, header=True)
    assert facts["parts"][1:] == plain["parts"][1:] and facts["parts"][0] != plain["parts"][0]
    (tmp_path / "whole.json").write_text('{"sha256": "whole"}', encoding="utf-8")
    bench.quantize("x")
    assert perplexity(bench, tmp_path / "x", "x.gguf.json") == perplexity(
        bench, tmp_path / "x.gguf", "whole.json"
    )
    both, _ = repaired(bench, "x", {}, tmp_path / "y", split=10**9, header=True)
    assert [Path(part["file"]).name for part in both["parts"]] == [f"y-0000{n}-of-00002.gguf" for n in (1, 2)]
