"""The readers of files that others wrote: sound files to begin from, and what makes them malformed."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Union, get_args, get_origin, is_typeddict

import numpy as np

import mutations
from mutations import Mutate
from quantmill import yamlio
from quantmill.check import kind
from quantmill.checkpoint.convert import has_drafts
from quantmill.checkpoint.export import layers_of, read_config
from quantmill.checkpoint.safetensors import Checkpoint, Writer
from quantmill.checkpoint.safetensors import Tensor as Weight
from quantmill.config import file as user
from quantmill.config.refusal import check_yaml
from quantmill.corpus.chat import ChatTemplate
from quantmill.corpus.decode import Document, decode
from quantmill.corpus.messages import BrokenRowError
from quantmill.corpus.read import open_source, read_rows
from quantmill.errors import QuantmillError
from quantmill.evaluate import problems
from quantmill.evaluate.prompting import trained_context
from quantmill.files import read_user_text
from quantmill.formats import chunks, docs, ggufio, imatrix
from quantmill.formats.manifest import read_manifest_rows
from quantmill.formats.plan import PlanRow, read_plan, write_plan
from quantmill.formats.report import fields
from quantmill.formats.sensitivity import SensitivityRow, read_sensitivity, write_sensitivity
from quantmill.formats.source import MODEL
from quantmill.formats.types import tensor_bytes
from quantmill.imatrix.imported import checked
from quantmill.judge import same_size
from quantmill.model import manifest, memory
from quantmill.model.header import FACTS, hyperparameters, not_finite, read_source
from quantmill.recipe import importance, interchange, render, rules
from quantmill.sensitivity.imported import convert, read_curve, read_results

DATA = Path(__file__).parent / "data"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}"
)


class Reader(NamedTuple):
    """A reader: the name of its file, sound files, what makes them malformed, and the reading.

    `prepare` writes what it needs beside the file.
    """

    file: str
    samples: Callable[[], list[bytes]]
    mutate: Mutate
    read: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None


# --- GGUF ---------------------------------------------------------------------

_LONG = 1 << 10


@cache
def header(name: str = "tiny-moe") -> ggufio.Header:
    """The header of a model of the tests, without its vocabulary."""
    whole = ggufio.read_header(DATA / f"{name}.gguf")
    kv = {key: value for key, value in whole.kv.items() if len(value[1]) < _LONG}
    return ggufio.Header(whole.path, whole.shards, whole.tensors, kv)


def _gguf_parts() -> mutations._Gguf:
    return mutations.gguf_parts(header(), b"")


def _clone_parts() -> mutations._Gguf:
    """The same model quantized, as a header alone."""
    parts, offset = _gguf_parts(), 0
    for tensor, known in zip(parts.tensors, header().tensors, strict=True):
        if len(known.shape) > 1 and known.shape[0] % 32 == 0:
            tensor[2] = 2
        tensor[3] = offset
        kind_ = "q4_0" if tensor[2] == 2 else known.type
        offset += ggufio.padded(tensor_bytes(kind_, known.shape))
    return parts


def _whole_parts() -> mutations._Gguf:
    kv = {"general.architecture": ggufio.encode_string("llama"), "llama.block_count": ggufio.encode_u32(1)}
    tensors = [
        ("token_embd.weight", 0, (32, 4)),
        ("blk.0.attn_q.weight", 2, (32, 2)),
        ("output.weight", 1, (4,)),
    ]
    serialized = ggufio.serialize(kv, tensors)
    parts = mutations._Gguf([[key.encode(), *value] for key, value in kv.items()], [], bytes(640))
    offset = 0
    for name, kind_, shape in tensors:
        parts.tensors.append([name.encode(), list(shape), kind_, offset])
        offset += ggufio.padded({0: 512, 2: 36, 1: 8}[kind_])
    assert mutations.gguf_bytes(parts).startswith(serialized)
    return parts


def read_model(path: Path) -> None:
    """All that is made of a header alone."""
    source = read_source(path)
    kind.refuse(source, "m", [kind.Evaluation("imatrix", "imatrix", 512)], "config.yaml")
    render.facts(source)
    memory.tables(source, {"x": 1 << 30}, None)
    not_finite(source)
    facts = manifest.facts(source, ["0" * 64], 1)
    assert not MODEL.fault(facts), MODEL.fault(facts)
    json.dumps(hyperparameters(source), allow_nan=False)
    if path.suffix != ".tsv":
        trained_context(path)
    template = source.value("tokenizer.chat_template")
    if isinstance(template, str):
        with suppress(ValueError):
            ChatTemplate(template, bos="<s>", eos="</s>")


def _models() -> list[bytes]:
    return [mutations.gguf_bytes(_gguf_parts())]


# --- the importance matrix ----------------------------------------------------


def read_imatrix(path: Path) -> None:
    imatrix.facts(path)
    with np.errstate(all="ignore"):
        checked(imatrix.read(path), header(), path)


@cache
def _imatrix_parts() -> mutations._Gguf:
    path = DATA / "llama-imatrix-moe.gguf"
    of_file = ggufio.read_header(path)
    start = of_file.tensors[0].offset
    return mutations.gguf_parts(of_file, path.read_bytes()[start:])


# --- YAML and JSON ------------------------------------------------------------

RECIPE = {
    "engine": "mainline",
    "base": "Q4_K_M",
    "imatrix": "required",
    "scales": True,
    "notes": ["a note"],
    "rules": [
        {"role": "ffn_down_exps", "layers": [0, 1], "type": "q6_K", "why": "edge experts"},
        {"match": "blk\\.1\\.ffn_.*\\.weight", "type": "q5_K", "optional": True},
        {"role": ["attn_q", "attn_k"], "type": "q8_0"},
    ],
}
CONFIG = {
    "models": {
        "tiny": {
            "source": {"path": "m.gguf"},
            "card": {"license": "mit", "about": "why", "contexts": [4096]},
            "recipes": ["Q4_K_M", {"name": "x", "template": "preset", "parameters": {"base": "Q8_0"}}],
        }
    },
    "corpora": {
        "c": {"sources": [{"name": "a", "path": "a.txt", "weight": 1.0}], "seed": 1},
        "d": {"sources": [{"name": "b", "path": "b.txt", "weight": 1.0}]},
    },
    "imatrix": {"corpus": "c", "chunks": 8, "context": 512},
    "recipes": ["Q8_0"],
    "bench": {"kld": {"corpus": "d", "chunks": 8, "context": 512}},
    "publish": {"repo": "me/{model}-GGUF", "include": ["logs"]},
    "results": "results",
    "store": {"max": "50 GiB"},
}


def read_recipe(path: Path) -> None:
    recipe = rules.parse(path.read_text("utf-8", errors="surrogateescape"), path)
    text = rules.dump(recipe)
    assert rules.parse(text, path) == recipe
    rules.assign(recipe, header(), frozenset(tensor.name for tensor in header().tensors), path)


def read_config_file(path: Path) -> None:
    """What a run does with it."""
    check_yaml(path)
    user.parse(yamlio.load(read_user_text(path), path), str(path))


_CHATS = [
    {"messages": [{"role": "user", "content": "Hi\\nthere"}, {"role": "assistant", "content": None}]},
    {"messages": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
            {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        ],
        "tools": [{"name": "f"}],
    },
]


@cache
def _chat_template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE, bos="<s>", eos="</s>")


def _render(messages: Any, tools: Any) -> Document:
    return Document(_chat_template().render(messages, tools), chat=True)


def read_chats(path: Path) -> None:
    """Each row is decoded or broken, never anything else."""
    from quantmill.corpus.messages import Conversation

    raw = path.read_bytes()
    values: list[object] = [raw, raw.decode("utf-8", errors="replace")]
    try:
        row = json.loads(raw)
        values.append(row)
        if isinstance(row, dict):
            values.append(Conversation(row.get("messages"), row.get("tools")))
    except (ValueError, RecursionError):
        pass
    for value in values:
        for messages in (False, True):
            with suppress(BrokenRowError):
                decode(value, _render, messages=messages)


def sample_of(hint: Any) -> Any:
    """A value of a report's type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired):
        return sample_of(args[0])
    if origin in (Union, UnionType):
        return sample_of(args[0])
    if is_typeddict(hint):
        return {name: sample_of(field) for name, field in fields(hint).items()}
    if origin is Literal:
        return args[0]
    if origin is list:
        return [sample_of(args[0])]
    if origin is dict:
        return {"x": sample_of(args[1])}
    return {float: 1.5, int: 3, str: "x", bool: True, NoneType: None, Any: 1}[hint]


def _reports() -> list[bytes]:
    return [
        json.dumps([report.path, sample_of(kind_)]).encode()
        for report in docs.REPORTS
        for kind_ in report.types
    ]


def read_report(path: Path) -> None:
    """Each kind of report: the file is a list of the report's path and its value."""
    raw = path.read_bytes()
    try:
        name, value = json.loads(raw)
        report = next((report for report in docs.REPORTS if report.path == name), docs.REPORTS[0])
        path.write_text(json.dumps(value))
    except (ValueError, TypeError, RecursionError):
        report = docs.REPORTS[0]
    read = report.read(path)
    json.dumps(read, allow_nan=False)


# --- tables -------------------------------------------------------------------

_SHAPE = (64, 4)


@cache
def _plan_rows() -> list[PlanRow]:
    return [
        PlanRow(f"blk.{i}.attn_q.weight", "attn_q", i, _SHAPE, "f16", "q4_0", 144, "base") for i in range(3)
    ] + [PlanRow("output.weight", "output", -1, _SHAPE, "f16", "q8_0", 272, "rule 1: x")]


def _written(write: Callable[[Path], object]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "x")
        return (Path(folder) / "x").read_bytes()


def _plans() -> list[bytes]:
    return [_written(lambda path: write_plan(path, _plan_rows()))]


def _sensitivities() -> list[bytes]:
    rows = [
        SensitivityRow(row.name, row.role, row.layer, row.shape, kind_, 144, 0.1, 0.01, kld, 0.001)
        for row in _plan_rows()
        for kind_, kld in (("q4_0", 0.2), ("q8_0", 0.01))
    ]
    return [_written(lambda path: write_sensitivity(path, rows))]


def read_sensitivities(path: Path) -> None:
    table = read_sensitivity(path)
    importance.from_sensitivity(table, [0, 1, 2], path)


def _manifests() -> list[bytes]:
    return [_written(lambda path: manifest.write_manifest(path, manifest.rows(header(), _Same())))]


class _Same(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "0" * 64


def _facts() -> bytes:
    facts = manifest.facts(header(), ["0" * 64], 1)
    return json.dumps(facts).encode()


def read_manifest(path: Path) -> None:
    read_manifest_rows(path)
    read_model(path)


def read_facts(path: Path) -> None:
    read_model(path.with_name("manifest.tsv"))


_RESULTS = (
    b"QTYPE,blk.0.attn_q.weight,blk.1.attn_q.weight,output.weight\nq4_0,0.1,0.2,404\nq8_0,0.01,0.02,0\n"
)
_CURVE = b"QTYPE,group0\nq4_0,0.5\nq8_0,0.05\nbf16,0\niq4_kt,0.4\n"


def read_imported(path: Path) -> None:
    other = path.with_name("curve.csv" if path.name == "results.csv" else "results.csv")
    results, curve = (path, other) if path.name == "results.csv" else (other, path)
    values, points = read_results(results), read_curve(curve)
    try:
        convert(_plan_rows(), values, points)
    except QuantmillError as error:  # as the stage does
        raise QuantmillError(str(error), results) from None


def _beside(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


# --- corpora ------------------------------------------------------------------


def _parquets() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [
        pa.table({"text": ["a" * 50, "b\\n" * 20, None] * 20, "n": list(range(60))}),
        pa.table({"messages": [row["messages"] for row in _CHATS[:1]] * 9}),
        pa.table({"content": pa.array(["x", "y", "x"] * 30).dictionary_encode()}),
        pa.table({"text": pa.array([b"\xff", b"ok", None])}),
    ]
    samples = []
    for table in tables:
        for compression in ("none", "zstd"):
            file = io.BytesIO()
            pq.write_table(table, file, compression=compression)
            samples.append(file.getvalue())
    return samples


def read_corpus(path: Path) -> None:
    for value in read_rows(open_source(path)):
        with suppress(BrokenRowError):
            decode(value, _render)


def _chunked() -> list[bytes]:
    file = io.BytesIO()
    rows = [chunks.Chunk("d", np.arange(16, dtype=np.int32), [1, 2]) for _ in range(5)]
    chunks.write_chunks(file, rows)
    return [file.getvalue()]


def read_chunk_file(path: Path) -> None:
    chunks.row_digests(path)
    chunks._read_in_process(path, 0, 4)


# --- checkpoints --------------------------------------------------------------


def _safetensors() -> list[bytes]:
    weights = [
        Weight("model.layers.0.mlp.up_proj.weight", "BF16", (16, 32), Path("model.safetensors")),
        Weight("model.norm.weight", "F32", (32,), Path("model.safetensors")),
        Weight("x", "U8", (), Path("model.safetensors")),
    ]

    def write(path: Path) -> None:
        widths = {"BF16": np.uint16, "F32": np.float32, "U8": np.uint8}
        with Writer(path, weights) as writer:
            for weight in weights:
                writer.put(weight.name, np.zeros(weight.shape, widths[weight.dtype]))

    return [_written(write)]


def of_safetensors(random: Any, data: bytes) -> bytes:
    """The header as JSON, its length, or the bytes."""
    if random.random() < 0.3:
        return mutations.of_bytes(random, data)
    (length,) = struct.unpack("<Q", data[:8])
    head = mutations.of_json(random, data[8 : 8 + length].rstrip())
    said = random.choice((len(head), len(head), len(head), *mutations._NUMBERS))
    return struct.pack("<Q", said) + head + data[8 + length :]


def read_checkpoint(path: Path) -> None:
    checkpoint = Checkpoint(path.parent)
    config = read_config(path.parent)
    layers_of(config)
    has_drafts(checkpoint, config)
    for tensor in checkpoint.tensors.values():
        checkpoint.data(tensor)


def _checkpoint(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(_safetensors()[0])
    (folder / "config.json").write_text(json.dumps({"architectures": ["X"], "num_hidden_layers": 1}))


_INDEX = json.dumps(
    {"weight_map": {"x": "model.safetensors", "model.norm.weight": "model.safetensors"}}
).encode()
_HF_CONFIG = json.dumps(
    {
        "architectures": ["X"],
        "num_hidden_layers": 1,
        "text_config": {"num_hidden_layers": 2, "mtp_num_layers": 1},
    }
).encode()

_PROBLEMS = (DATA / "problems.jsonl").read_bytes()


def of_lines(random: Any, data: bytes) -> bytes:
    lines = data.rstrip(b"\n").split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = mutations.of_json(random, lines[at])
    return b"\n".join(lines) + b"\n"


def read_problems(path: Path) -> None:
    for problem in problems.read(path):
        _ = problem.preamble, problem.solution, problem.program("x")


# --- the table ----------------------------------------------------------------


def _one(content: bytes) -> Callable[[], list[bytes]]:
    return lambda: [content]


def _dumped(value: Any) -> Callable[[], list[bytes]]:
    return _one(json.dumps(value).encode())


_LINES = {
    "regex": b"# a comment\n^blk\\.0\\.ffn_down_exps\\.weight$=q6_K\nblk\\..*=iq4_ks\n",
    "tensor-types": b"blk\\.0\\..*=q6_K output=q8_0\n",
    "custom-q": b"blk\\.0\\..*=q6_K,blk\\..*=q8_0\n",
}


def _imports(form: str) -> Reader:
    def read(path: Path) -> None:
        interchange.engine_of(path, form)
        interchange.read(path, form, header())

    return Reader("recipe.txt", _one(_LINES[form]), mutations.of_bytes, read)


READERS: dict[str, Reader] = {
    "gguf": Reader(
        "m.gguf",
        lambda: [mutations.gguf_bytes(_whole_parts())],
        lambda random, data: mutations.of_gguf(_whole_parts())(random, data),
        lambda path: (ggufio.read_header(path), ggufio.read_shard(path)),
    ),
    "model": Reader(
        "m.gguf", _models, lambda random, data: mutations.of_gguf(_gguf_parts())(random, data), read_model
    ),
    "clone": Reader(
        "m.gguf",
        lambda: [mutations.gguf_bytes(_clone_parts())],
        lambda random, data: mutations.of_gguf(_clone_parts())(random, data),
        lambda path: interchange.read(path, "gguf", header()),
    ),
    "imatrix.gguf": Reader(
        "x.gguf",
        lambda: [mutations.gguf_bytes(_imatrix_parts())],
        lambda random, data: mutations.of_gguf(_imatrix_parts())(random, data),
        read_imatrix,
    ),
    "imatrix.dat": Reader(
        "x.dat", lambda: [(DATA / "llama-imatrix-moe.dat").read_bytes()], mutations.of_bytes, read_imatrix
    ),
    "recipe": Reader("recipe.yaml", _dumped(RECIPE), mutations.of_yaml, read_recipe),
    "config": Reader("config.yaml", _dumped(CONFIG), mutations.of_yaml, read_config_file),
    "chats": Reader(
        "row.json", lambda: [json.dumps(row).encode() for row in _CHATS], mutations.of_json, read_chats
    ),
    "parquet": Reader("c.parquet", _parquets, mutations.of_bytes, read_corpus),
    "text": Reader("c.txt", _one("Some text.\n\nMore ü.\n".encode() * 900), mutations.of_bytes, read_corpus),
    "chunks": Reader("corpus.parquet", _chunked, mutations.of_bytes, read_chunk_file),
    "safetensors": Reader("model.safetensors", _safetensors, of_safetensors, read_checkpoint, _checkpoint),
    "index": Reader(
        "model.safetensors.index.json", _one(_INDEX), mutations.of_json, read_checkpoint, _checkpoint
    ),
    "hf-config": Reader("config.json", _one(_HF_CONFIG), mutations.of_json, read_checkpoint, _checkpoint),
    "plan": Reader("plan.tsv", _plans, mutations.of_table, read_plan),
    "sensitivity": Reader("sensitivity.tsv", _sensitivities, mutations.of_table, read_sensitivities),
    "manifest": Reader(
        "manifest.tsv",
        _manifests,
        mutations.of_table,
        read_manifest,
        lambda folder: _beside(FACTS, _facts())(folder),
    ),
    "facts": Reader(
        FACTS,
        lambda: [_facts()],
        mutations.of_json,
        read_facts,
        lambda folder: _beside("manifest.tsv", _manifests()[0])(folder),
    ),
    "results.csv": Reader(
        "results.csv", _one(_RESULTS), mutations.of_table, read_imported, _beside("curve.csv", _CURVE)
    ),
    "curve.csv": Reader(
        "curve.csv", _one(_CURVE), mutations.of_table, read_imported, _beside("results.csv", _RESULTS)
    ),
    "figures.csv": Reader(
        "figures.csv",
        _one(b"file,gib,humaneval,kld\nx,1.5,0.5,0.1\ny,0.7,,0.3\n"),
        mutations.of_table,
        lambda path: same_size.bands(same_size.read_csv(path), []),
    ),
    "scores": Reader(
        "scores.json",
        _dumped({"0": 1.5, "1": 0.5}),
        mutations.of_json,
        lambda path: importance.blend([(importance.from_json(path, [0, 1]), 1.0)]),
    ),
    "report": Reader("report.json", _reports, mutations.of_json, read_report),
    "problems": Reader("problems.jsonl", _one(_PROBLEMS), of_lines, read_problems),
    "problems.gz": Reader(
        "problems.jsonl.gz", lambda: [gzip.compress(_PROBLEMS, mtime=0)], mutations.of_bytes, read_problems
    ),
    **{form: _imports(form) for form in _LINES},
}
