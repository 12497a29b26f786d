"""Malformed files are refused in one line: what is wrong, where, and the cure. None hangs or takes gigabytes.

`python tests/fuzz.py` gives the same readers any number of inputs; these are kept.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from fuzz import SlowError, limited, line_of, malformed
from quantmill import yamlio
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.report import Report
from readers import READERS

KEPT: dict[str, tuple[int, ...]] = {
    "gguf": (0, 3, 5, 6, 8, 9, 10, 12, 14, 15),
    "model": (0, 1, 2, 3, 5, 6, 7, 8, 9, 10),
    "clone": (0, 1, 2, 3, 5, 6, 7, 8, 9, 10),
    "imatrix.gguf": (0, 1, 2, 4, 5, 6, 7, 8, 9, 10),
    "imatrix.dat": (0, 18, 20, 23, 34, 35, 49, 50, 61, 118),
    "recipe": (1, 2, 3, 4, 5, 6, 8, 10, 11, 12),
    "config": (0, 1, 2, 3, 4, 5, 6, 7, 10, 11),
    "chats": (),
    "parquet": (0, 1, 3, 4, 13, 31, 48, 82, 113, 118),
    "text": (),
    "chunks": (0, 77),
    "safetensors": (0, 4, 5, 8, 13, 97),
    "index": (0, 2, 5, 7, 28, 91),
    "hf-config": (2, 7, 16, 21, 22, 35),
    "plan": (0, 2, 6, 7, 14, 18, 64, 79),
    "sensitivity": (0, 1, 2, 7, 10, 11, 18, 30),
    "manifest": (0, 1, 2, 6, 10, 11, 33),
    "facts": (0, 2, 4, 7, 9, 10, 11, 16, 21, 22),
    "results.csv": (0, 1, 2, 3, 4, 6, 14, 32, 37, 41),
    "curve.csv": (0, 1, 2, 3, 4, 8, 10, 14, 25, 41),
    "figures.csv": (0, 2, 3, 4, 6, 9, 14, 31, 32, 36),
    "scores": (0, 2, 4, 5, 7, 9, 10, 11, 16, 22),
    "report": (0, 1, 2, 7, 8, 9, 11, 14, 16, 18),
    "problems": (0, 3, 25, 28, 32, 55, 61),
    "problems.gz": (0,),
    "regex": (0, 5, 7, 8, 11, 16, 21, 22, 25, 27),
    "tensor-types": (0, 1, 2, 3, 6, 7, 9, 12, 14, 25),
    "custom-q": (0, 1, 2, 3, 6, 7, 9, 12, 14, 19),
}
"""By reader, the seeds of inputs that it refuses, each in other words where there are so many."""


def test_so_many_are_kept() -> None:
    assert KEPT.keys() == READERS.keys()
    assert sum(map(len, KEPT.values())) >= 200


@pytest.mark.parametrize("name", READERS)
def test_what_is_sound_is_read(tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    for sample in reader.samples():
        assert line_of(reader, tmp_path, sample) is None


@pytest.mark.parametrize("name", KEPT)
def test_what_is_malformed_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    reader = READERS[name]
    reader.prepare(tmp_path)
    for seed in KEPT[name]:
        line = line_of(reader, tmp_path, malformed(reader, seed))
        assert line is not None, seed
        assert str(tmp_path) in line or reader.file in line, line
        assert "; " in line or name == "config", line  # pydantic's own words say what must be


@pytest.mark.parametrize("name", ["chats", "text"])
def test_rows_are_broken_and_never_the_run(tmp_path: Path, name: str) -> None:
    for seed in range(40):
        assert line_of(READERS[name], tmp_path, malformed(READERS[name], seed)) is None


def test_a_hang_would_be_seen() -> None:
    with pytest.raises(SlowError), limited(0.1):
        while True:
            pass


def test_much_memory_would_be_seen() -> None:
    with pytest.raises(MemoryError), limited():
        bytearray(3 << 30)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [*a]", "x.yaml: an alias stands within what it stands for, or makes it too deep; write out"),
        ("[" * 20_000, "x.yaml: no valid YAML in line 1 (nested more than 100 deep); put it right"),
        ("- " * 5000, "x.yaml: no valid YAML in line 1 (nested more than 100 deep); put it right"),
        ("a: 2001-99-99", "x.yaml: no valid YAML (month must be in 1..12); put it right, or in quotes"),
        ("a: !!int x", "x.yaml: no valid YAML (invalid literal for int() with base 10: 'x'); put it right"),
        ("a: 1\nb: 2\na: 3", "x.yaml: line 3: a is there twice; rename or remove one"),
        ("? [a]\n: 1", "x.yaml: line 1: a key is a list or a mapping; keys are words"),
        (
            'a: "\\ud800"',
            "x.yaml: line 1: half a letter (a lone surrogate), which no UTF-8 can hold; remove it",
        ),
        ("a: !!python/object/apply:os.system [ls]", "x.yaml: no valid YAML in line 1 (could not determine a"),
    ],
)
def test_unsound_yaml(text: str, message: str) -> None:
    with pytest.raises(QuantmillError) as caught, limited():
        yamlio.load(text, "x.yaml")
    assert str(caught.value).startswith(message)


def test_a_billion_laughs() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    with (
        pytest.raises(QuantmillError, match=r"^x: its aliases stand for more than 100,000 values; write out"),
        limited(),
    ):
        yamlio.load("\n".join(lines), "x")
    assert yamlio.load("a: &a [1, 2]\nb: *a", "x") == {"a": [1, 2], "b": [1, 2]}


def gguf(key: str, value: tuple[int, bytes]) -> bytes:
    """A file of one tensor, with a key of that value."""
    kv = {"general.architecture": ggufio.encode_string("llama"), key: value}
    kv["general.type"] = ggufio.encode_string("imatrix" if key.startswith("imatrix") else "model")
    return ggufio.serialize(kv, [("blk.0.attn_q.weight", 2, (32, 2))]) + bytes(64)


_LIST = (9, struct.pack("<IQII", 4, 2, 1, 2))
_REPEAT = "the file is damaged: download it again, or convert the model anew"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "gguf",
            gguf("split.count", _LIST),
            "m.gguf: split.count of the metadata is [1, 2], not a whole number of 0 or more; " + _REPEAT,
        ),
        (
            "model",
            gguf("llama.block_count", ggufio.encode_string("two")),
            "m.gguf: llama.block_count of the metadata is 'two', not a whole number of 0 or more; " + _REPEAT,
        ),
        (
            "model",
            gguf("llama.context_length", (6, struct.pack("<f", float("nan")))),
            "m.gguf: llama.context_length of the metadata is nan, not a whole number of 0 or more; "
            + _REPEAT,
        ),
        (
            "model",
            gguf("general.name", _LIST),
            "m.gguf: general.name of the metadata is [1, 2], not text; " + _REPEAT,
        ),
        (
            "model",
            gguf("llama.attention.head_count", (9, struct.pack("<IQi", 5, 1, -1))),
            "m.gguf: llama.attention.head_count of the metadata is [-1], not a list of whole numbers of 0 or "
            "more; " + _REPEAT,
        ),
        (
            "imatrix.gguf",
            gguf("imatrix.datasets", _LIST),
            "x.gguf: imatrix.datasets is no list of names; make the file again",
        ),
        ("scores", b"[" * 100_000, "scores.json: no valid JSON (maximum recursion depth exceeded"),
        ("scores", b'{"\\ud800": 1}', "scores.json: no valid JSON ('utf-8' codec can't encode character"),
        ("scores", b'{"' + b"9" * 5000 + b'": 1}', "scores.json: 99999"),
        ("scores", b'{"0": 1' + b"0" * 400 + b"}", "scores.json: 0: 1000"),
        (
            "plan",
            b"name\trole\nx\n",
            "plan.tsv: has 1 cells in line 2, and 2 columns; delete it to have it made again",
        ),
        (
            "plan",
            b"name\tname\nx\ty\n",
            "plan.tsv: has two columns of one name; delete it to have it made again",
        ),
        ("plan", b"\xffname\n", "plan.tsv: is not UTF-8 (at byte 0); save it as UTF-8"),
        (
            "manifest",
            b"name\trole\tlayer\tne0\tne1\tne2\tne3\ttype\tbytes\tsha256\nx\tx\t0\t-1\t1\t1\t1\tf16\t1\tx\n",
            "manifest.tsv: line 2: no row of a manifest (the absurd shape (-1,)); it takes the columns",
        ),
        (
            "facts",
            b'{"architecture": "llama", "hyperparameters": {}, "metadata_bytes": 99999999999999}',
            "model.json: its name or metadata_bytes is none; it is a manifest's model.json",
        ),
        (
            "facts",
            b'{"architecture": "llama", "hyperparameters": {"x": 1e300}}',
            "model.json: hyperparameters.x: 1e+300 is no value of a hyperparameter; give a number, text or",
        ),
        (
            "curve.csv",
            b"QTYPE,group0\nq4_0," + b"1" * 200_000,
            "curve.csv: line 2: no comma-separated values (field larger than field limit (131072)); put it",
        ),
        (
            "figures.csv",
            b"file,bytes,kld\nx,0.3,1\n",
            "figures.csv: line 2: bytes is 0.3; give the size of a file",
        ),
        ("figures.csv", b"file,gib,kld\nx,1e300,1\n", "figures.csv: line 2: gib is 1e+300; give the size of"),
        (
            "problems",
            b'{"task_id": "a", "prompt": "", "entry_point": "(", "canonical_solution": "", "test": ""}\n',
            "problems.jsonl: line 1: entry_point is '('; give the function's name",
        ),
        ("problems", b"[" * 100_000, "problems.jsonl: line 1: no JSON (maximum recursion depth exceeded"),
        ("problems.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\xff\xff\xff", "problems.jsonl.gz: cannot be read ("),
        ("hf-config", b"[[1, 2]]", "config.json: is no JSON object; give the file that its name promises"),
        (
            "index",
            b'{"weight_map": {"x": 1}}',
            "model.safetensors.index.json: has no weight_map; fetch the file again",
        ),
        ("chunks", b"PAR1PAR1PAR1", "corpus.parquet: no whole parquet file; delete it to have it made again"),
    ],
)
def test_the_lines(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    READERS[name].prepare(tmp_path)
    refused = line_of(READERS[name], tmp_path, content)
    assert refused is not None and refused.removeprefix(f"{tmp_path}/").startswith(line), refused


def test_a_report_has_no_number_that_json_has_not(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text('{"corpus": "c", "share": NaN}', encoding="utf-8")
    kind = Report("r.json", "x", (dict[str, float | str],), "")
    with pytest.raises(QuantmillError, match=r"r.json: share is nan, not a finite number; delete it"):
        kind.read(path)


def test_an_error_line_is_short_and_shows_what_it_holds() -> None:
    assert str(QuantmillError("a\x1b[31mb\ud800c\u202ed", "x\ny", "z")) == (
        r"x y: a\x1b[31mb\ud800c\u202ed; z"
    )
    line = str(QuantmillError("x" * 10**6, "where", "cure"))
    assert line.startswith("where: xxx") and line.endswith("xxx; cure") and len(line) < 5000
