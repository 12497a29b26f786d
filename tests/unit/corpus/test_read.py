"""Rows out of parquet and text files, and files that give none."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from quantmill.corpus.messages import BrokenRowError, Conversation
from quantmill.corpus.read import ROW_CHARACTERS, open_source, read_rows
from quantmill.errors import QuantmillError

OTHER = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def parquet(folder, **columns):
    path = folder / "x.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return path


def rows(path, column=None):
    return list(read_rows(open_source(path, column)))


@pytest.mark.parametrize(
    "type",
    [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_every_type_of_text_is_read(tmp_path, type):
    texts = ["a", "ü\\n", None, ""]
    values = [t if t is None or "binary" not in str(type) else t.encode() for t in texts]
    assert rows(parquet(tmp_path, content=pa.array(values, type))) == [b"a", "ü\\n".encode(), None, b""]


def test_all_rows_of_all_row_groups_come_in_order(tmp_path):
    path = parquet(tmp_path, content=[f"row {i}" for i in range(1001)])
    assert rows(path) == [f"row {i}".encode() for i in range(1001)]
    assert open_source(path).rows == 1001


def test_chat_rows_are_lists_of_messages(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    path = parquet(tmp_path, id=[1], messages=pa.array([chat], CHAT))
    assert open_source(path).messages
    assert rows(path) == [chat]


def test_a_column_of_the_name_messages_holds_messages_though_they_are_text(tmp_path):
    assert open_source(parquet(tmp_path, messages=["[]"])).messages
    assert not open_source(parquet(tmp_path, content=["[]"])).messages


@pytest.mark.parametrize("column", ["conversations", "conversation", "chat", "dialogue"])
def test_conversations_of_sharegpt_are_found_by_their_form(tmp_path, column):
    chat = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    path = parquet(tmp_path, id=["x"], **{column: pa.array([chat], OTHER)})
    source = open_source(path)
    assert (source.column, source.messages, source.tools) == (column, True, None)
    assert rows(path) == [chat]


def test_columns_of_json_hold_what_the_json_says(tmp_path):
    chat = [{"role": "user", "content": "hi", "name": None}]
    texts = [json.dumps(chat), '"text"', None, "[{", "[" * 100_000]
    path = parquet(tmp_path, messages=pa.array(texts, pa.json_()))
    assert open_source(path).messages
    result = rows(path)
    assert result[:3] == [chat, "text", None]
    assert [str(error) for error in result[3:] if isinstance(error, BrokenRowError)] == ["not valid JSON"] * 2


def test_lists_of_json_are_messages(tmp_path):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo", "extra": [1]}]
    items = pa.array([json.dumps(message) for message in said], pa.json_())
    path = parquet(tmp_path, chats=pa.ListArray.from_arrays([0, 1, 2], items))
    assert open_source(path).messages
    assert rows(path) == [[said[0]], [said[1]]]


def test_nulls_that_a_struct_has_for_other_rows_are_left_out_at_any_depth(tmp_path):
    arguments = pa.struct([("a", pa.int64()), ("b", pa.int64())])
    calls = pa.list_(pa.struct([("name", pa.string()), ("arguments", arguments)]))
    type = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", calls)]))
    said = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"b": 2}}]}
    path = parquet(tmp_path, messages=pa.array([[said], [{"role": "user", "content": "x"}]], type))
    assert rows(path) == [[said], [{"role": "user", "content": "x"}]]


def test_a_column_of_tools_comes_with_the_messages_and_is_never_the_text(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    tools = ['[{"name": "f"}]', None]
    path = parquet(tmp_path, messages=pa.array([chat, chat], CHAT), tools=tools)
    assert rows(path) == [Conversation(chat, tools[0].encode()), Conversation(chat, None)]
    path = parquet(tmp_path, prompt=["x"], tools=pa.array([[{"name": "f"}]]))
    assert rows(path) == [Conversation(b"x", [{"name": "f"}])]
    assert rows(parquet(tmp_path, prompt=["x"], tools=[3])) == [b"x"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_plain_text_is_read_as_its_byte_order_mark_says(tmp_path, encoding):
    path = tmp_path / "x.txt"
    text = "Ein Satz über 漢字 und 😀.\n\n" * 1000
    path.write_bytes(text.encode(encoding))
    assert "".join(rows(path)) == text


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-16-le", "UTF-16 without a byte order mark; save it as UTF-8, such as by `iconv -f UTF-16LE"),
        ("utf-16-be", "iconv -f UTF-16BE"),
        ("latin-1", "is not UTF-8; save it as UTF-8, such as by `iconv -f ISO-8859-1"),
    ],
)
def test_plain_text_in_another_encoding_is_refused_at_once(tmp_path, encoding, said):
    path = tmp_path / "x.txt"
    path.write_bytes(("Ein Satz über Bücher.\n\n" * 1000).encode(encoding))
    with pytest.raises(QuantmillError, match=f"{path}: .*{said}"):
        open_source(path)


def test_a_few_bytes_that_are_no_utf8_cost_their_row_alone(tmp_path):
    path = tmp_path / "x.txt"
    good = ("Ein Satz über Bücher. " * 200 + "\n\n").encode()
    path.write_bytes(good + b"caf\xe9 " * 800 + b"\n\n" + good)
    result = rows(path)
    assert [not any("\udc80" <= c <= "\udcff" for c in row) for row in result] == [True, False, True]


def test_utf16_that_ends_in_mid_letter_is_a_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("some text\n".encode("utf-16")[:-1])
    with pytest.raises(QuantmillError, match="no whole UTF-16 text; save it again, as UTF-8"):
        rows(path)


def test_one_row_that_is_no_utf8_costs_no_other(tmp_path):
    bad = pa.array([b"ok", b"\xff", b"fine"]).cast(pa.binary()).view(pa.string())
    assert rows(parquet(tmp_path, content=bad)) == [b"ok", b"\xff", b"fine"]
    role = pa.array(["user"] * 3)
    structs = pa.StructArray.from_arrays([role, bad], ["role", "content"])
    result = rows(parquet(tmp_path, messages=pa.ListArray.from_arrays([0, 1, 2, 3], structs)))
    assert isinstance(result[1], UnicodeDecodeError)
    assert [result[0], result[2]] == [[{"role": "user", "content": text}] for text in ("ok", "fine")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text", "content"], "content"),
        (["messages", "text"], "text"),
        (["id", "messages", "prompt"], "messages"),
        (["prompt"], "prompt"),
        (["tools", "prompt"], "prompt"),
        (["conversations", "chat", "id"], "conversations"),
    ],
)
def test_the_column_is_guessed(tmp_path, names, expected):
    columns = {name: pa.array([1]) if name == "id" else ["x"] for name in names}
    assert open_source(parquet(tmp_path, **columns)).column == expected


@pytest.mark.parametrize(
    ("column", "what"),
    [
        ("prose", "no column prose"),
        ("id", r"column id \(int64\) is neither text nor chats"),
        (None, "no column that is plainly the text or the chats"),
    ],
)
def test_a_missing_column_is_refused_with_those_that_fit(tmp_path, column, what):
    path = parquet(tmp_path, id=[1], left=["x"], right=["y"])
    with pytest.raises(QuantmillError, match=what) as error:
        open_source(path, column)
    assert str(path) in str(error.value)
    assert str(error.value).endswith("set `column` to one of those that are: left (string), right (string)")


def test_the_only_chats_beside_texts_are_found_and_what_has_neither_is_refused(tmp_path):
    chat = [{"role": "user", "content": "Hi"}]
    assert (
        open_source(parquet(tmp_path, id=["x"], source=["y"], turns=pa.array([chat], CHAT))).column == "turns"
    )
    with pytest.raises(QuantmillError, match="the chats; give a file with a column of either"):
        open_source(parquet(tmp_path, id=[1], score=[0.5]))


def test_a_truncated_parquet_is_refused_before_a_row_is_read(tmp_path):
    path = parquet(tmp_path, content=["text " * 100] * 500)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(QuantmillError, match="no whole parquet file"):
        open_source(path)


def test_a_parquet_damaged_further_in_is_a_line_too(tmp_path):
    path = parquet(tmp_path, content=[f"{i} text" * 20 for i in range(500)])
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    with pytest.raises(QuantmillError, match="no whole parquet file"):
        rows(path)


@pytest.mark.parametrize(("name", "what"), [("no.parquet", "no such file"), ("x.csv", "neither")])
def test_other_files_are_refused(tmp_path, name, what):
    (tmp_path / "x.csv").write_text("a,b", encoding="utf-8")
    with pytest.raises(QuantmillError, match=what):
        open_source(tmp_path / name)


def test_plain_text_is_cut_at_empty_lines_once_a_row_is_full(tmp_path):
    path = tmp_path / "x.txt"
    paragraphs = [f"paragraph {i}: " + "word " * 100 + "\n\n" for i in range(40)]
    path.write_text("".join(paragraphs), encoding="utf-8")
    result = rows(path)
    assert "".join(result) == "".join(paragraphs)
    assert all(ROW_CHARACTERS <= len(row) < 2 * ROW_CHARACTERS for row in result[:-1])
    assert all(row.endswith("\n\n") and row.startswith("paragraph") for row in result)


def test_plain_text_without_empty_lines_or_lines_is_cut_all_the_same(tmp_path):
    path = tmp_path / "x.txt"
    for text in ("a line\n" * 5000, "x" * 50_000):
        path.write_text(text, encoding="utf-8")
        result = rows(path)
        assert "".join(result) == text
        assert max(map(len, result)) < 4 * ROW_CHARACTERS
    path.write_text("", encoding="utf-8")
    assert rows(path) == []


def test_plain_text_has_no_column(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("text", encoding="utf-8")
    with pytest.raises(QuantmillError, match="leave `column` out"):
        open_source(path, "content")
