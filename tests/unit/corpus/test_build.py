"""From files to a corpus and its report."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantmill import spec
from quantmill.corpus import build
from quantmill.corpus.decode import Document
from quantmill.corpus.messages import BrokenRowError
from quantmill.corpus.read import open_source
from quantmill.errors import QuantmillError
from quantmill.formats import corpus
from quantmill.formats.chunks import read_chunks, row_digests
from quantmill.progress import Log

MODEL = Path(__file__).parents[2] / "data" / "tiny-llama.gguf"
EXAMPLES = Path(__file__).parents[3] / "examples" / "corpora"
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def fake_tokenize(text, parse_special):
    """A token a character; control tokens have numbers of their own."""
    return np.array([ord(c) + (100_000 if parse_special else 0) for c in text], np.int32)


def render(messages, tools):
    if messages[0]["role"] == "critic":
        raise BrokenRowError("refused by the chat template (no critics)")
    return Document("".join(f"<{m['role']}>{m['content']}" for m in messages), chat=True)


def take(values, **options):
    options = {"domain": "x", "file": "x.txt", "chunks": 2, "context": 8, "seed": 1} | options
    return build.take(lambda: iter(values), render, fake_tokenize, **options)


def text_of(chunks):
    return "".join(chr(token % 100_000) for chunk in chunks for token in chunk.tokens)


ROWS = [f"row {i:03}" for i in range(100)]


def test_chunks_are_whole_rows_end_to_end_each_with_a_line_end():
    part = take(ROWS, chunks=3)
    assert [chunk.tokens.shape for chunk in part.chunks] == [(8,)] * 3
    assert text_of(part.chunks) == "".join(row.document.text + "\n" for row in part.rows)[:24]
    assert len(part.rows) == 3


def test_a_row_that_ends_its_line_gets_no_second_line_end():
    assert text_of(take(["abcdefg\n"], chunks=1).chunks) == "abcdefg\n"


def test_a_chunk_knows_its_rows():
    pieces = [np.arange(n, dtype=np.int32) for n in (3, 5, 0, 10, 2)]
    chunks = build.cut(pieces, [11, 12, 13, 14, 15], "x", 5, 4)
    assert [chunk.rows for chunk in chunks] == [[11, 12], [12], [14], [14], [14, 15]]


def test_chat_rows_are_tokenized_with_their_control_tokens_and_text_is_not():
    chat = [{"role": "user", "content": "Hello"}]
    assert (take([chat, json.dumps(chat)], chunks=1).chunks[0].tokens >= 100_000).all()
    assert (take(["<|im_start|>"], chunks=1).chunks[0].tokens < 100_000).all()


def test_the_row_is_noted_while_it_is_tokenized_and_not_longer(monkeypatch):
    noted = []
    monkeypatch.setattr(build.command, "doing", noted.append)
    take(["abcdefg"], chunks=1)
    assert noted == ["row 1 of x.txt", ""]


def test_where_the_guess_of_the_text_needed_is_short_more_is_read():
    passes = []

    def values():
        passes.append(1)
        return iter(ROWS)

    def sparse(text, parse_special):
        return np.zeros(1, np.int32)  # a token a row: far less than guessed

    long = [row + "x" * 20 for row in ROWS]
    parts = [
        build.take(
            lambda: values() and iter(long),
            render,
            sparse,
            domain="x",
            file="x.txt",
            chunks=n,
            context=10,
            seed=1,
        )
        for n in (1, 9)
    ]
    assert [len(part.rows) for part in parts] == [10, 90]
    assert parts[1].rows[:10] == parts[0].rows
    assert len(passes) > 2


def test_too_little_text_is_refused_with_what_there_is():
    with pytest.raises(QuantmillError) as error:
        take(ROWS, chunks=101)
    assert str(error.value).startswith("source x: 800 tokens in 100 rows, and 101 chunks of 8 need 808; give")
    with pytest.raises(QuantmillError, match="16 tokens in 2 rows"):
        take(ROWS, chunks=3, rows=2)
    with pytest.raises(QuantmillError, match="0 tokens in 0 rows"):
        take([], chunks=1)


CRITIC = [{"role": "critic", "content": "No."}]


def test_too_little_text_for_what_could_not_be_read_says_why():
    with pytest.raises(QuantmillError) as error:
        take([CRITIC] * 90, chunks=1)
    assert str(error.value) == (
        "source x: 0 tokens in 0 rows, and 1 chunks of 8 need 8; all 90 rows of x.txt are left out: "
        "90 refused by the chat template (no critics), such as row 1; "
        "choose a file or a `column` whose rows can be read, or ask for fewer chunks"
    )
    with pytest.raises(
        QuantmillError, match=r"800 tokens .*; 1 of 101 rows of x.txt are left out.*; give it"
    ):
        take([CRITIC, *ROWS], chunks=101)
    with pytest.raises(
        QuantmillError, match=r"7 tokens in 1 rows.*; 5 of 6 rows of x.txt are left out: 4 .*; 1 not"
    ):
        take(["row 01", *[CRITIC] * 4, b"\xff"], chunks=1)


def test_the_most_common_reasons_are_said():
    rows = [b"\xff", 7, "\0", "\0", CRITIC, [], *ROWS]
    part = take(rows, chunks=1)
    assert build._left_out(part.selection, "x") == (
        "6 of 106 rows of x are left out: 2 with NUL characters, such as row 3; 1 not UTF-8, such as row 1; "
        "1 neither text nor messages, such as row 2; and more"
    )


def test_a_row_that_no_tokenizer_can_take_is_cut(tmp_path):
    settings = config(a=1) | {"chunks": 10, "context": 40_000}
    _, parts, report = built(tmp_path, settings, ["words " * 3 + "-" * 500_000])
    assert [row.document.text for row in parts[0].rows] == ["words " * 3 + "-" * 400_000]
    assert report["sources"][0]["rows_cut"] == 1
    assert report["warnings"] == [
        "a: 1 row of 0.parquet cut short, for over 400,000 characters without a break cannot be tokenized"
    ]


def config(**sources):
    return {
        "corpus": "mixed",
        "seed": 1,
        "context": 8,
        "chunks": 20,
        "sources": [{"name": n, "column": None, "rows": None, "weight": w} for n, w in sources.items()],
    }


def parquet(path, rows, type=None):
    pq.write_table(pa.table({"content": pa.array(rows, type)}), path)
    return path


def built(folder, settings, *contents):
    sources = [open_source(parquet(folder / f"{i}.parquet", rows)) for i, rows in enumerate(contents)]
    chunks, parts = build.build(settings, sources, render, fake_tokenize, Log(folder / "log"))
    return chunks, parts, build.report(settings, sources, ["sha"] * len(sources), parts)


def test_sources_are_mixed_at_their_weights(tmp_path):
    other = [row.replace("row", "col") for row in ROWS]
    chunks, _, report = built(tmp_path, config(a=3, b=1), ROWS, other)
    domains = [chunk.domain for chunk in chunks]
    assert domains == corpus.domains(report)
    assert domains[:8].count("b") == domains[8:16].count("b") == 2
    assert all(("row" in text_of([c])) == (c.domain == "a") for c in chunks)
    assert [(s["chunks"], s["share_wanted"], s["share_got"]) for s in report["sources"]] == [
        (15, 0.75, 0.75),
        (5, 0.25, 0.25),
    ]
    assert report["tokens"] == 160


def test_a_row_of_two_sources_is_used_once(tmp_path):
    _, parts, report = built(tmp_path, config(a=1, b=1), ROWS, ROWS)
    used = [row.digest for part in parts for row in part.rows]
    assert len(set(used)) == len(used) == 20
    assert [s["rows_duplicate"] for s in report["sources"]] == [0, 10]


def test_the_report_counts_what_became_of_the_rows(tmp_path):
    rows = [*ROWS[:30], *ROWS[:30], None, "", '[{"role": "user", "content": "cut', r"lone \ud800"]
    _, _, report = built(tmp_path, config(a=1, tiny=0.001), rows, ROWS)
    result = report["sources"][0]
    assert {key: result[key] for key in result if key.startswith("rows")} == {
        "rows_read": 64,
        "rows_used": 20,
        "rows_broken": 2,
        "rows_duplicate": 20,
        "rows_empty": 2,
        "rows_joined": 0,
        "rows_cut": 0,
    }
    assert (result["file"], result["column"], result["characters"]) == ("0.parquet", "content", 140)
    assert result["broken"] == [
        {"reason": "not valid JSON", "rows": 1, "first": 63},
        {"reason": "with a lone surrogate", "rows": 1, "first": 64},
    ]
    assert report["warnings"] == [
        "a: 2 of 64 rows of 0.parquet are left out: 1 not valid JSON, such as row 63; "
        "1 with a lone surrogate, such as row 64",
        "tiny: its weight is too low for one of 20 chunks",
    ]


# The command, with a real vocabulary.


def without_template(path):
    """The model under a key that no one reads for its chat template."""
    key = b"tokenizer.chat_template"
    path.write_bytes(MODEL.read_bytes().replace(key, key[::-1]))
    return path


def run(folder, name, sources, *more, seed=1, chunks=6, context=64, model=MODEL):
    settings = {
        "corpus": name,
        "seed": seed,
        "context": context,
        "chunks": chunks,
        "sources": [{"name": n, "column": None, "rows": None, "weight": 1.0} for n in sources],
    }
    words = [
        sys.executable,
        "-m",
        "quantmill.corpus.build",
        "--spec",
        spec.make("corpus.build", settings, {}),
        "--model",
        model,
        "--corpus",
        folder / f"{name}.parquet",
        "--report",
        folder / f"{name}.json",
        "--log",
        folder / f"{name}.log",
        "--sources",
        *sources.values(),
        *more,
    ]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


def test_the_default_corpora_are_built_and_share_no_row(tmp_path):
    for name, more in (
        ("calibration", ()),
        ("held-out", ["--disjoint-from", tmp_path / "calibration.parquet"]),
    ):
        sources = {domain: EXAMPLES / f"{name}-{domain}.parquet" for domain in ("code", "prose")}
        done = run(tmp_path, name, sources, *more, chunks=40, context=512)
        assert (done.returncode, done.stderr) == (0, "")
        tokens, domains = read_chunks(tmp_path / f"{name}.parquet", 0, 99)
        assert tokens.shape == (40, 512)
        assert domains == ["code", "prose"] * 20
        assert tokens.min() >= 0 and tokens.max() < 2048
        report = json.loads((tmp_path / f"{name}.json").read_text("utf-8"))
        assert corpus.domains(report) == domains
        assert [source["share_got"] for source in report["sources"]] == [0.5, 0.5]
        assert report["sources"][0]["sha256"] == spec.file_sha256(sources["code"])
    used = [row_digests(tmp_path / f"{name}.parquet") for name in ("calibration", "held-out")]
    assert used[0] and used[1] and not used[0] & used[1]


def test_the_example_files_hold_no_row_twice():
    files = [pq.read_table(path).column("content").to_pylist() for path in sorted(EXAMPLES.glob("*.parquet"))]
    rows = [row for file in files for row in file]
    assert len(files) == 6 and len(rows) == len(set(rows)) > 300


def test_all_kinds_of_rows_make_the_same_bytes_every_time(tmp_path):
    def chat(i):
        return [
            {"role": "user", "content": f"What is {i} + {i}?"},
            {"role": "assistant", "content": f"{2 * i}."},
        ]

    structs = tmp_path / "structs.parquet"
    pq.write_table(pa.table({"messages": pa.array([chat(i) for i in range(30)], CHAT)}), structs)
    texts = parquet(tmp_path / "json.parquet", [json.dumps(chat(i)) for i in range(30, 60)])
    escaped = parquet(tmp_path / "escaped.parquet", [rf"line {i}\nand \u00fc" for i in range(200)])
    (tmp_path / "plain.txt").write_text(
        "\n\n".join(f"A paragraph, the {i}th." for i in range(200)), encoding="utf-8"
    )
    sources = {"s": structs, "j": texts, "e": escaped, "p": tmp_path / "plain.txt"}
    made = []
    for _ in range(2):
        done = run(tmp_path, "all", sources, chunks=8)
        assert (done.returncode, done.stderr) == (0, "")
        made.append([(tmp_path / f"all.{kind}").read_bytes() for kind in ("parquet", "json")])
    assert made[0] == made[1]
    tokens, domains = read_chunks(tmp_path / "all.parquet", 0, 8)
    assert sorted(domains) == sorted("sjep" * 2)
    with build.Vocabulary(MODEL) as vocabulary:
        pieces = {
            d: [vocabulary.token_text(int(t)) for t in row] for d, row in zip(domains, tokens, strict=True)
        }
    assert "<|im_start|>" in pieces["s"] and "<|im_start|>" in pieces["j"]
    assert "\\" not in "".join(pieces["e"]) and "Ċ" in pieces["e"]
    run(tmp_path, "other", sources, chunks=8, seed=2)
    assert (tmp_path / "other.parquet").read_bytes() != made[0][0]


def refused(folder, done):
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not list(folder.glob("bad.[pj]*")) and not list(folder.glob(".*"))
    return done.stderr


def test_overlap_is_an_error(tmp_path):
    shared = parquet(
        tmp_path / "shared.parquet", [f"The {i}th row of many words that say little" for i in range(9)]
    )
    assert run(tmp_path, "calibration", {"x": shared}, chunks=1).returncode == 0
    more = ["--disjoint-from", tmp_path / "calibration.parquet"]
    message = refused(tmp_path, run(tmp_path, "bad", {"x": shared}, *more, chunks=1))
    assert "corpus bad: shares" in message and "rows with the corpus calibration" in message
    assert 'th row of many words that say"' in message and "give one of the two other files" in message


@pytest.mark.parametrize("problem", ["missing", "truncated", "column", "little"])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, problem):
    path = parquet(tmp_path / "x.parquet", ["a row of text"] * 3)
    run_bad = partial(run, tmp_path, "bad")
    if problem == "missing":
        assert "no such file" in refused(tmp_path, run_bad({"x": tmp_path / "no.parquet"}))
    elif problem == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
        assert "no whole parquet file" in refused(tmp_path, run_bad({"x": path}))
    elif problem == "column":
        pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), path)
        assert "set `column` to one of those that are: a (string), b (string)" in refused(
            tmp_path, run_bad({"x": path})
        )
    else:
        assert "corpus bad: source x: " in refused(tmp_path, run_bad({"x": path}))


def test_a_model_without_a_chat_template_cannot_read_chat_rows(tmp_path):
    chat = parquet(tmp_path / "x.parquet", [json.dumps([{"role": "user", "content": "Hi"}])])
    done = run(tmp_path, "bad", {"x": chat}, model=without_template(tmp_path / "plain.gguf"))
    assert "has no chat template, and a source has chat rows; choose" in refused(tmp_path, done)


# What overflowed the stack of llama.cpp's tokenizer.


def with_pre_tokenizer(path, name):
    """The model with another pre-tokenizer, whose name is as long, so that all else stays where it is."""
    was = b"\x05\0\0\0\0\0\0\0qwen2"
    data = MODEL.read_bytes()
    assert data.count(was) == 1
    path.write_bytes(data.replace(was, was[:8] + name.encode()))
    return path


def test_a_long_run_of_one_character_is_tokenized_as_any_text(tmp_path):
    model = with_pre_tokenizer(tmp_path / "x.gguf", "bloom")  # one that finds words by std::regex
    code = (
        "import sys; from pathlib import Path; from quantmill.engine.vocabulary import Vocabulary\n"
        "with Vocabulary(Path(sys.argv[1])) as vocabulary:\n"
        "    few, many = (vocabulary.tokenize('a b' + '-' * n) for n in (3200, 64000))\n"
        "    assert many[: len(few) - 1].tolist() == few[:-1].tolist()\n"
        "    print(len(many) / len(few))"
    )
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 15 < float(done.stdout) < 25


@pytest.mark.parametrize("kind", ["-", " ", "\n", "漢", "word ", "a b "])
def test_what_can_be_tokenized_ends_where_a_stretch_is_too_long(kind):
    before = "A line.\n" * 60_000
    endless = (kind * 500_000)[:500_000]
    room = build.tokenizable(before + endless)
    assert room - len(before) in (399_999, 400_000)
    assert build.tokenizable(endless[:400_000]) == 400_000
    assert build.tokenizable(before * 2) == len(before) * 2


def test_what_cannot_be_tokenized_is_refused():
    with build.Vocabulary(MODEL) as vocabulary, pytest.raises(QuantmillError, match="over 400,000 char"):
        vocabulary.tokenize("-" * 400_001)
