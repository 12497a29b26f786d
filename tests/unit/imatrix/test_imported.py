"""A published importance matrix: both forms read and checked against the model; what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ik
from models import write_llama
from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats import imatrix as formats
from quantmill.formats.imatrix import Entry, Imatrix, as_legacy
from quantmill.imatrix.imported import checked

DATA = Path(__file__).parents[2] / "data"
MODELS = ("llama", "moe")
FORMS = ("gguf", "dat")
Change = Callable[[dict[str, Entry]], object]


def published(model: str, form: str) -> Path:
    """What llama-imatrix itself made of a model of the tests."""
    return DATA / f"llama-imatrix-{model}.{form}"


def header(model: str) -> ggufio.Header:
    return ggufio.read_header(DATA / f"tiny-{model}.gguf")


def after(change: Change, model: str = "moe") -> tuple[Imatrix, list[str]]:
    """The published imatrix of a model, its entries changed, as it is checked."""
    result = formats.read(published(model, "gguf"))
    entries = {
        name: Entry(np.array(entry.in_sum2), np.array(entry.counts)) for name, entry in result.entries.items()
    }
    change(entries)
    return checked(replace(result, entries=entries), header(model), Path("x/published.gguf"))


@pytest.mark.parametrize("model", MODELS)
def test_both_forms_say_the_same(model: str, tmp_path: Path) -> None:
    ours = {}
    for form in FORMS:
        path = published(model, form)
        assert formats.facts(path) == ("text.txt", 12)
        imatrix, warnings = checked(formats.read(path), header(model), path)
        assert warnings == []
        formats.write_gguf(tmp_path / "i.gguf", imatrix)
        formats.write_dat(tmp_path / "i.dat", imatrix)
        assert (tmp_path / "i.dat").read_bytes() == published(model, "dat").read_bytes()
        ours[form] = formats.read_gguf(tmp_path / "i.gguf")
    assert (tmp_path / "i.gguf").read_bytes() != published(model, "gguf").read_bytes()  # tokens are unknown
    assert ours["gguf"].context == 128 and ours["dat"].context == 0
    for name, entry in ours["gguf"].entries.items():
        assert np.allclose(entry.mean(), ours["dat"].entries[name].mean(), rtol=1e-6)
        assert entry.in_sum2.shape == ours["dat"].entries[name].in_sum2.shape


def test_a_legacy_files_means_are_its_own_to_the_last_bit(tmp_path: Path) -> None:
    """Of few calls, no power of two: nothing is made up for an expert, and nothing is rounded twice."""
    random, path = np.random.default_rng(5), tmp_path / "few.dat"
    tensors = [tensor for tensor in header("moe").tensors if tensor.name.startswith("blk.")]
    out = [struct.pack("<i", sum(len(tensor.shape) > 1 for tensor in tensors))]
    for tensor in tensors:
        if len(tensor.shape) > 1:
            size = tensor.shape[0] * int(np.prod(tensor.shape[2:], dtype=int))
            out.append(
                struct.pack(f"<i{len(tensor.name)}sii", len(tensor.name), tensor.name.encode(), 7, size)
            )
            out.append(random.lognormal(0, 2, size).astype("<f4").tobytes())
    path.write_bytes(b"".join(out))  # and no chunks: as llama-imatrix wrote it at first
    assert formats.facts(path) == ("", 0)
    imatrix, _ = checked(formats.read(path), header("moe"), path)
    formats.write_gguf(tmp_path / "i.gguf", imatrix)
    made = formats.read_gguf(tmp_path / "i.gguf")
    for name, values in ik.read_dat(path).items():
        assert np.array_equal(made.entries[name].made_up().mean().reshape(-1), values), name
        assert np.array_equal(as_legacy(made.made_up()).entries[name].mean().reshape(-1), values), name


def test_values_of_experts_that_a_conversion_put_in_a_row_are_told_apart() -> None:
    def one_row(entries: dict[str, Entry]) -> None:
        entry = entries["blk.0.ffn_down_exps.weight"]
        entries["blk.0.ffn_down_exps.weight"] = Entry(entry.in_sum2.reshape(1, -1), np.float32([600]))

    result, warnings = after(one_row)
    shape = next(t.shape for t in header("moe").tensors if t.name == "blk.0.ffn_down_exps.weight")
    entry = result.entries["blk.0.ffn_down_exps.weight"]
    assert entry.in_sum2.shape == (shape[2], shape[0]) and entry.counts.tolist() == [600] * shape[2]
    assert warnings == []


def test_an_expert_whose_values_are_all_zero_counts_as_never_seen() -> None:
    result, _ = after(lambda entries: entries["blk.0.ffn_down_exps.weight"].in_sum2.__setitem__(1, 0))
    assert result.entries["blk.0.ffn_down_exps.weight"].counts[1] == 0


def test_entries_of_nothing_and_of_what_the_model_lacks_are_left_out_and_named() -> None:
    def change(entries: dict[str, Entry]) -> None:
        entries["blk.0.attn_kv_b.weight"] = entries["blk.0.attn_q.weight"]
        entries["blk.0.attn_q.weight"].in_sum2[:] = 0
        entries["blk.1.attn_q.weight"].counts[:] = 0

    result, warnings = after(change, "llama")
    assert (
        not {"blk.0.attn_kv_b.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight"} & result.entries.keys()
    )
    assert warnings == [
        "published.gguf has 1 entries of tensors that the model lacks (blk.0.attn_kv_b.weight): "
        "they are left out",
        "published.gguf has 2 entries without a value that tells anything (blk.0.attn_q.weight, "
        "blk.1.attn_q.weight): they count as missing",
    ]


def drop(prefix: str) -> Change:
    return lambda entries: [entries.pop(name) for name in list(entries) if name.startswith(prefix)]


def put(name: str, sums: list[list[float]], counts: list[float]) -> Change:
    entry = Entry(np.array(sums, np.float32), np.array(counts, np.float32))
    return lambda entries: entries.__setitem__(name, entry)


def spoil(value: float) -> Change:
    return lambda entries: entries["blk.1.attn_v.weight"].in_sum2.__setitem__((0, 3), value)


EXPERTS = "blk.0.ffn_down_exps.weight"
REFUSED: dict[str, tuple[Change, str]] = {
    "nan": (spoil(np.nan), "blk.1.attn_v.weight has values that are negative or not finite"),
    "infinity": (spoil(np.inf), "blk.1.attn_v.weight has values that are negative or not finite"),
    "negative": (spoil(-1), "blk.1.attn_v.weight has values that are negative or not finite"),
    "a count of NaN": (
        put("blk.0.attn_q.weight", [[1.0] * 256], [np.nan]),
        "blk.0.attn_q.weight has values that are negative or not finite",
    ),
    "counts of others": (
        put(EXPERTS, [[1.0] * 256] * 4, [9] * 3),
        f"{EXPERTS} has 3 counts of 4 sums; get the file again",
    ),
    "another width": (
        put("blk.0.attn_qkv.weight", [[1.0] * 8], [9]),
        "has 8 values of blk.0.attn_qkv.weight, and the model 256: it is of another model",
    ),
    "more experts": (
        put(EXPERTS, [[1.0] * 256] * 7, [9] * 7),
        f"has {EXPERTS} of 7 experts, and the model has 4: it is of another model",
    ),
    "more layers": (
        put("blk.9.attn_q.weight", [[1.0] * 256], [9]),
        "has an entry of blk.9.attn_q.weight, and the model has 2 layers: it is of another model",
    ),
    "fewer layers": (
        drop("blk.1."),
        r"has no entry of blk.1.\w+.weight, nor of any other tensor of layer 1: it is of another model",
    ),
    "none of its layers": (drop("blk."), r"has no entry of blk.0.\w+.weight, nor of any other tensor"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_models_and_broken_values_are_refused_with_the_first_tensor(case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(QuantmillError, match=rf"^x/published.gguf: {message}"):
        after(change)


def test_the_model_tells_its_own_from_anothers() -> None:
    with pytest.raises(QuantmillError, match="of another model; name the imatrix of this one, or have it"):
        checked(formats.read(published("moe", "dat")), header("llama"), Path("moe.dat"))


FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text": (lambda _: b"a text of some length, " * 9, "is no importance matrix, neither llama.cpp's"),
    "empty": (lambda _: b"", "is no importance matrix, neither"),
    "zeros": (lambda _: bytes(99), "is no importance matrix, neither"),
    "a list of numbers": (lambda _: struct.pack("<9i", *range(1, 10)), "is no importance matrix, neither"),
    "cut .dat": (lambda dat: dat[: len(dat) // 2], r"breaks off after \d+ of 14 entries; get the file again"),
    "model": (
        lambda _: (DATA / "tiny-llama.gguf").read_bytes(),
        "is a GGUF, but no importance matrix; make it with",
    ),
    "cut GGUF": (lambda _: published("llama", "gguf").read_bytes()[:-99], r"truncated: \d+ of"),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.parametrize("reader", [formats.read, formats.facts])
def test_what_is_no_imatrix_is_refused_in_either_way_of_reading(
    case: str, reader: Callable[[Path], object], tmp_path: Path
) -> None:
    make, message = FILES[case]
    path = tmp_path / "i.dat"
    path.write_bytes(make(published("llama", "dat").read_bytes()))
    with pytest.raises(QuantmillError, match=message) as error:
        reader(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="cannot be read"):
        formats.read(tmp_path / "no.gguf")


def run(folder: Path, model: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """The stage as its rule calls it."""
    made = spec.make("imatrix.imported", {"file": file.name}, {"model": "m", "imatrix": "ab" * 32})
    words = ["--spec", made, "--model", model, "--file", file, "--gguf", folder / "i.gguf"]
    words += ["--dat", folder / "i.dat", "--report", folder / "i.json"]
    command = [sys.executable, "-m", "quantmill.imatrix.imported", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stage_says_where_it_is_from_and_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    done = run(tmp_path, DATA / "tiny-llama.gguf", published("llama", "dat"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "i.json").read_text("utf-8"))
    assert report["imported"] == {
        "file": "llama-imatrix-llama.dat",
        "sha256": "ab" * 32,
        "dataset": "text.txt",
    }
    assert (report["chunks"], report["context"], report["tokens"]) == (12, None, None)
    assert "perplexity" not in report and "corpus" not in report
    assert len(report["entries"]) == 14 and report["missing"] == []


def test_the_stage_refuses_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    model = write_llama(tmp_path / "m.gguf", width=64)
    done = run(tmp_path, model, published("llama", "gguf"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "values of blk.0.attn_" in done.stderr and "it is of another model" in done.stderr
    assert not list(tmp_path.glob("i.*"))
