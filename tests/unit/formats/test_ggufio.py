"""GGUF headers: read as gguf-py reads them, written as llama-quantize writes them, refused when broken."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

import models
import native
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio, output
from quantmill.formats.ggufio import encode_string, encode_u32, read_header

DATA = Path(__file__).parents[2] / "data"
MOE = DATA / "tiny-moe.gguf"
Q4_K_M = 15


def parts(**changed: object) -> bytes:
    """A GGUF of one f32 tensor of 8 elements, with parts of its header replaced."""
    part = {
        "magic": b"GGUF",
        "version": 3,
        "tensor_count": 1,
        "kv_count": 1,
        "key": b"a.key",
        "value": struct.pack("<II", 4, 7),
        "name": b"t.weight",
        "shape": (8,),
        "type": 0,
        "offset": 0,
        "data": bytes(32),
    } | changed
    head = struct.pack("<4sIQQ", part["magic"], part["version"], part["tensor_count"], part["kv_count"])
    head += struct.pack("<Q", len(part["key"])) + part["key"] + part["value"]
    shape = part["shape"]
    tensor = struct.pack("<Q", len(part["name"])) + part["name"]
    tensor += struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, part["type"], part["offset"])
    head += tensor * part["tensor_count"] if part["tensor_count"] < 3 else tensor
    return head + bytes(-len(head) % 32) + part["data"]


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return path


def test_reads_what_gguf_py_reads() -> None:
    header, reader = read_header(MOE), gguf.GGUFReader(MOE)
    assert [(t.name, t.shape, t.type_id, t.bytes, t.offset) for t in header.tensors] == [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type), int(t.n_bytes), int(t.data_offset))
        for t in reader.tensors
    ]
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: header.value(key) for key in header.kv} == theirs
    assert (header.architecture, header.layers, header.shards) == ("qwen35moe", 2, (MOE,))
    assert header.value("no.such.key", 5) == 5


def test_every_scalar_type(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -300)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_array("floats", [0.5, 2.0])
    writer.add_array("none", [])
    writer.add_array("texts", ["a", "ü"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    result = {key: header.value(key) for key in header.kv if key != "general.architecture"}
    assert result == {
        "u8": 200,
        "i8": -3,
        "u16": 60000,
        "i16": -300,
        "u64": 1 << 63,
        "i64": -(1 << 62),
        "f64": 0.1,
        "yes": True,
        "floats": [0.5, 2.0],
        "texts": ["a", "ü"],
    } | ({"none": []} if "none" in header.kv else {})


def test_a_large_vocabulary_is_skipped_and_decoded_whole(tmp_path: Path) -> None:
    tokens = b"".join(struct.pack("<Q", n % 9) + b"x" * (n % 9) for n in range(250_000))
    path = write(tmp_path, parts(value=struct.pack("<IIQ", 9, 8, 250_000) + tokens))
    assert read_header(path).value("a.key") == ["x" * (n % 9) for n in range(250_000)]


def test_a_split_model_is_read_as_one(tmp_path: Path) -> None:
    models.write_llama(tmp_path / "m.gguf", width=64, split_max_tensors=5)
    whole = read_header(models.write_llama(tmp_path / "whole.gguf", width=64))
    first = sorted(tmp_path.glob("m-00001-of-*.gguf"))[0]
    header = read_header(first)
    assert len(header.shards) == 4
    assert [(t.name, t.shape) for t in header.tensors] == [(t.name, t.shape) for t in whole.tensors]
    reader = {t.name: t for shard in header.shards for t in gguf.GGUFReader(shard).tensors}
    for tensor in header.tensors:
        data = header.shards[tensor.shard].read_bytes()[tensor.offset : tensor.offset + tensor.bytes]
        assert data == reader[tensor.name].data.tobytes()
    assert not {key for key in output.output_kv(header, 7, None) if key.startswith("split.")}


def test_a_split_model_must_be_complete_and_begun_at_its_first_shard(tmp_path: Path) -> None:
    models.write_llama(tmp_path / "m.gguf", width=64, split_max_tensors=10)
    first, second = sorted(tmp_path.glob("m-*.gguf"))[:2]
    with pytest.raises(QuantmillError, match="not the first of 2 shards; give the file"):
        read_header(second)
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(QuantmillError, match="is not shard 2 of 2"):
        read_header(first)
    second.unlink()
    with pytest.raises(QuantmillError, match=r"shard m-00002-of-00002[.]gguf is missing"):
        read_header(first)
    second.write_bytes(content[:-40])
    with pytest.raises(QuantmillError, match=r"m-00002.*truncated"):
        read_header(first)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-moe"])
@pytest.mark.parametrize("imatrix", [False, True])
def test_the_header_is_llama_quantizes_own(tmp_path: Path, name: str, imatrix: bool) -> None:
    source, out, npz = DATA / f"{name}.gguf", tmp_path / "out.gguf", None
    if imatrix:
        npz = tmp_path / "imatrix.npz"
        np.savez(npz, **{"blk.0.attn_q.weight": np.ones(256, np.float32)})
    native.quantize(source, out, Q4_K_M, None, npz)
    made, header = read_header(out), read_header(source)
    types = {t.name: t.type_id for t in made.tensors}
    shapes = {t.name: t.shape for t in header.tensors}
    order = output.llama_order(shapes)
    assert order == [t.name for t in made.tensors]
    ours = ggufio.serialize(output.output_kv(header, Q4_K_M, None), [(n, types[n], shapes[n]) for n in order])
    assert ours == out.read_bytes()[: len(ours)]
    assert made.tensors[0].offset == len(ours)


def test_what_the_header_says_of_the_imatrix() -> None:
    header = read_header(DATA / "tiny-llama.gguf")
    kv = output.output_kv(header, 27, {"file": "f" * 200, "dataset": "d", "entries": 14, "chunks": 2})
    assert list(kv)[-6:] == [
        "general.quantization_version",
        "general.file_type",
        "quantize.imatrix.file",
        "quantize.imatrix.dataset",
        "quantize.imatrix.entries_count",
        "quantize.imatrix.chunks_count",
    ]
    assert [ggufio.decode(kv[key]) for key in list(kv)[-6:]] == [2, 27, "f" * 127, "d", 14, 2]
    assert [kv[key][0] for key in list(kv)[-2:]] == [ggufio.U32, ggufio.U32]


def test_another_alignment_is_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    kv = {"general.architecture": encode_string("llama"), "general.alignment": encode_u32(64)}
    path.write_bytes(ggufio.serialize(kv, [("a", 0, (3,)), ("b", 0, (3,))], 64) + bytes(64 + 12))
    header = read_header(path)
    assert header.alignment == 64
    assert header.tensors[1].offset - header.tensors[0].offset == 64
    assert "general.alignment" not in output.output_kv(header, 1, None)


def test_serialize_reads_back(tmp_path: Path) -> None:
    tensors = [("a.weight", 12, (256, 3, 2)), ("b.weight", 0, (5, 1))]
    path = write(tmp_path, ggufio.serialize({"k": encode_string("v")}, tensors) + bytes(144 * 6 + 32))
    header = read_header(path)
    # trailing dimensions of 1 are left out, as ggml_n_dims counts them
    assert [(t.name, t.type_id, t.shape) for t in header.tensors] == [tensors[0], ("b.weight", 0, (5,))]
    assert header.value("k") == "v"


def test_llama_order_is_by_layer_then_name() -> None:
    names = ["output.weight", "blk.10.a", "blk.2.b", "blk.2.a", "blk.0.z", "token_embd.weight", "enc.blk.9.a"]
    assert output.llama_order(names) == [
        "enc.blk.9.a",
        "output.weight",
        "token_embd.weight",
        "blk.0.z",
        "blk.2.a",
        "blk.2.b",
        "blk.10.a",
    ]


def test_a_sound_file_passes(tmp_path: Path) -> None:
    header = read_header(write(tmp_path, parts()))
    assert (header.tensors[0].elements, header.value("a.key")) == (8, 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 and more of it", "not a GGUF file"),
        (parts()[:10], "ends within its header"),
        (parts(version=1), "GGUF version 1 is not known"),
        (parts(version=0x03000000), "a big-endian GGUF"),
        (parts(tensor_count=1 << 60), "tensors do not fit into a file"),
        (parts(kv_count=1 << 40), "key-value pairs do not fit into a file"),
        (parts(key=b""), "a key has the absurd length 0"),
        (parts(value=struct.pack("<I", 99)), "key a.key has unknown type 99"),
        (parts(value=struct.pack("<IIQ", 9, 4, 1 << 50)), "elements in a.key do not fit"),
        (parts(value=struct.pack("<IIQ", 9, 8, 1 << 50)), "strings in a.key do not fit"),
        (parts(value=struct.pack("<IIQQ", 9, 8, 1, 1 << 50)), "a string in a.key runs past the end"),
        (parts(value=struct.pack("<IIQQ", 9, 8, 2, 1 << 50)), "ends within its header"),
        (parts(value=struct.pack("<IIQ", 9, 9, 0)), "values of unknown type 9"),
        (parts(key=b"general.alignment", value=struct.pack("<II", 4, 24)), "general.alignment is no power"),
        (parts(name=b"n" * 64), "is longer than 63 bytes"),
        (parts(name=b"a\tb"), "has control characters"),
        (parts(name=b"\xff\xfe"), "no UTF-8"),
        (parts(shape=(1, 1, 1, 1, 1)), "has 5 dimensions"),
        (parts(shape=(1 << 40, 1 << 40)), "absurd shape"),
        (parts(shape=(8, 0)), "absurd shape"),
        (parts(type=31), "type 31, which is not known"),
        (parts(type=12), "rows of 8 elements, no multiple of q4_K's block of 256"),
        (parts(offset=1 << 40), "has offset 1,099,511,627,776, expected 0"),
        (parts(tensor_count=2), "tensor t.weight stands there twice"),
        (parts(data=bytes(20)), "truncated: 12 of"),
        (parts(shape=(8, 1 << 30)), "bytes are missing"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(QuantmillError, match=message) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_prefix_of_a_file_is_taken_for_the_whole(tmp_path: Path) -> None:
    content = parts()
    for length in range(0, len(content), 3):
        with pytest.raises(QuantmillError):
            read_header(write(tmp_path, content[:length]))


def test_a_header_alone_is_enough_where_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, parts(data=b""))
    header = read_header(path, data=False)
    assert (header.tensors[0].bytes, header.data) == (32, "none")
    with pytest.raises(QuantmillError, match="a header alone: the 32 bytes of its tensors are not there"):
        read_header(path)
    part = write(tmp_path, parts(data=b"x"))
    assert read_header(part, data=False).data == "part"
    with pytest.raises(QuantmillError, match="truncated: 31 of"):
        read_header(part)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(QuantmillError, match="no such file"):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(QuantmillError, match="cannot be read"):
        read_header(tmp_path)
