"""Malformed files, made of sound ones: one random fault or a few, by what the format is made of.

Seeded, so that a number names an input on every machine.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

Mutate = Callable[[random.Random, bytes], bytes]

_NUMBERS: Final = (
    0,
    1,
    7,
    255,
    (1 << 31) - 1,
    (1 << 31),
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
)
_NASTY: Final = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\n",
    b"\x1b[31m",
    b"../../x",
    b"/etc/passwd",
    b"a" * 300,
    "é\u0301\u202e".encode(),
)
_VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    0,
    -1,
    1.5,
    1 << 70,
    -(10**30),
    float("nan"),
    float("inf"),
    1e308,
    "",
    "x",
    "../../x",
    "\0",
    "a\nb",
    "\ud800",
    "\x1b[31m",
    "9" * 5000,
    "a" * 5000,
    [],
    {},
    [[]],
    [None],
    [1, "a"],
    {"a": 1},
    {"": ""},
)


# --- bytes --------------------------------------------------------------------


def of_bytes(random: random.Random, data: bytes) -> bytes:
    """Truncated, with bits flipped, with parts that are replaced by numbers, doubled, removed or inserted."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at = random.randrange(len(data) + 1)
        length = random.choice((1, 2, 4, 8, 16, 100))
        before, here, after = data[:at], data[at : at + length], data[at + length :]
        match random.randrange(7):
            case 0:
                data = before
            case 1:
                data = before + bytes(byte ^ 1 << random.randrange(8) for byte in here) + after
            case 2:
                number, width = random.choice(_NUMBERS), random.choice((4, 8))
                data = before + number.to_bytes(8, "little")[:width] + data[at + width :]
            case 3:
                data = before + here + here + after
            case 4:
                data = before + after
            case 5:
                data = before + random.choice(_NASTY) + here + after
            case 6:
                data = before + random.randbytes(length) + after
    return data


# --- trees: JSON, and YAML, which reads JSON ----------------------------------


def of_tree(random: random.Random, value: Any) -> Any:
    """A tree of mappings and lists with one node replaced, left out, doubled or renamed."""
    value = json.loads(json.dumps(value))
    places: list[tuple[Any, Any]] = []
    nodes = [value]
    while nodes:
        node = nodes.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        places += [(node, key) for key in keys]
        nodes += [node[key] for key in keys]
    if not places or random.random() < 0.02:
        return random.choice(_VALUES)
    holder, key = random.choice(places)
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "", "\n", "../x", "\ud800", "a" * 300, key.upper()))] = holder.pop(key)
        case 2 if isinstance(holder, list):
            holder.append(holder[key])
        case 3:
            holder[key] = [holder[key]]
        case 4:
            holder[key] = {"x": holder[key]}
        case _:
            holder[key] = random.choice(_VALUES)
    return value


def of_json(random: random.Random, data: bytes) -> bytes:
    """JSON with one value or byte that is wrong, nested too deeply, or of numbers that JSON has not."""
    match random.randrange(12):
        case 0:
            return b"[" * 100_000
        case 1:
            return b'{"a":' * 50_000
        case 2:
            return of_bytes(random, data)
        case 3:
            return data.replace(b'":', b'": 1e999, "', 1)
        case 4:
            return data.replace(b"0", b"9" * 5000, 1)
    value = json.loads(data)
    for _ in range(random.choice((1, 1, 2, 3))):
        value = of_tree(random, value)
    return json.dumps(value).encode()


_YAML: Final = (
    b"a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\n"
    b"d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d]\n"
    b"f: &f [*e, *e, *e, *e, *e, *e, *e, *e]\ng: &g [*f, *f, *f, *f, *f, *f, *f, *f]\n"
    b"rules: [*g, *g, *g, *g, *g, *g, *g, *g]\nmodels: *g\n",
    b"&a [*a]\n",
    b"&a {rules: *a, models: *a, base: *a}\n",
    b"base: &a [*a]\nmodels: *a\n",
    b"rules: &a [{role: *a}]\nmodels: {x: *a}\n",
    b"? [a, b]\n: 1\n",
    b"? {a: b}\n: 1\n",
    b"base: 2001-99-99\nmodels: 2001-99-99\n",
    b"base: !!int x\nmodels: !!int x\n",
    b"base: !!bool x\nmodels: !!bool x\n",
    b"base: !!timestamp x\nmodels: !!timestamp x\n",
    b"base: !!binary x\nmodels: !!binary x\n",
    b"base: !!python/object/apply:os.system [ls]\n",
    b"models: !!python/name:os.system\n",
    b"base: !x y\n",
    b"<<: 1\n",
    b"<<: [*x]\n",
    b"base: Q4_K_M\n<<: {base: Q8_0}\n",
    b"base: [\n" * 3000,
    b"- " * 5000,
    b"[" * 20_000,
    b"{a: " * 5000,
    b"--- a\n--- b\n",
    b"base: 0b_\nmodels: 0b_\n",
    b"base: " + b"9" * 5000 + b"\nmodels: " + b"9" * 5000,
    b"base: 1:2:3:4:5\n",
    b"base: .nan\nmodels: .inf\n",
    b"%YAML 9.9\n--- a\n",
    b"\xff\xfea\0",
    b"base: '\x07'\n",
    b'base: "\\ud800"\nmodels: "\\ud800"\n',
    b"base: ~\nrules: ~\n",
    b"!!set {a, b}\n",
    b"!!omap [a: 1, b: 2]\n",
    b"base: !!omap [a]\n",
    b"base: !!pairs [a]\n",
    b"base: !!set [a]\n",
    b"\t\tbase: x\n",
    b"@\n",
    b"*x\n",
)


def of_yaml(random: random.Random, data: bytes) -> bytes:
    """The faults of JSON, and YAML's own: aliases, cycles, tags, merges; `data` is JSON."""
    choice = random.random()
    if choice < 0.1:
        return random.choice(_YAML)
    if choice < 0.2:  # beside what is sound
        value = json.loads(data)
        lines = [f"{key}: {json.dumps(each)}".encode() for key, each in value.items()]
        return b"\n".join([*lines, random.choice(_YAML)])
    return of_json(random, data)


# --- tables -------------------------------------------------------------------


def of_table(random: random.Random, data: bytes) -> bytes:
    """A table with a cell, a row or a column that is wrong, or bytes that are."""
    if random.random() < 0.25:
        return of_bytes(random, data)
    separator = b"\t" if b"\t" in data else b","
    rows = [line.split(separator) for line in data.rstrip(b"\n").split(b"\n")]
    for _ in range(random.choice((1, 1, 2, 5))):
        row = random.choice(rows)
        at = random.randrange(len(row))
        match random.randrange(8):
            case 0:
                del row[at]
            case 1:
                row.insert(at, row[at])
            case 2:
                rows.insert(random.randrange(len(rows)), list(row))
            case 3:
                rows.remove(row)
            case 4:
                row[at] = random.choice(_NASTY)
            case 5:
                for each in rows:  # a column
                    if at < len(each):
                        del each[at]
            case _:
                words = (
                    b"-1",
                    b"nan",
                    b"inf",
                    b"1e999",
                    b"9" * 5000,
                    b"0",
                    b"0x0",
                    b"x",
                    b"1x-1",
                    b'"',
                    b'"a',
                    b"404",
                )
                row[at] = random.choice(
                    (*words, b"b" * 200_000, b"-9223372036854775809", b"1_0", "٣".encode())
                )
        rows = [row for row in rows if row] or [[b""]]
    return b"\n".join(separator.join(row) for row in rows) + random.choice((b"\n", b"", b"\r\n", b"\n\n"))


# --- GGUF ---------------------------------------------------------------------


class _Gguf(NamedTuple):
    """The parts of a GGUF: keys with the type and bytes of their values, tensors, and what follows."""

    kv: list[list[Any]]  # key, type, value
    tensors: list[list[Any]]  # name, shape, type, offset
    data: bytes


def _strings(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<Q", len(text)) + text for text in texts)


# Values of every type: what a reader may take for another.
_GGUF_VALUES: Final = (
    (4, struct.pack("<I", 0)),
    (4, struct.pack("<I", (1 << 32) - 1)),
    (5, struct.pack("<i", -1)),
    (5, struct.pack("<i", -(1 << 31))),
    (10, struct.pack("<Q", (1 << 64) - 1)),
    (11, struct.pack("<q", -(1 << 63))),
    (6, struct.pack("<f", float("nan"))),
    (6, struct.pack("<f", 1.5)),
    (12, struct.pack("<d", float("inf"))),
    (7, b"\x01"),
    (7, b"\x07"),
    (8, _strings(b"")),
    (8, _strings(b"x")),
    (8, _strings(b"\xff\xfe")),
    (8, _strings(b"../../x\n\0")),
    (8, _strings(b"a" * 5000)),
    (9, struct.pack("<IQ", 4, 0)),
    (9, struct.pack("<IQII", 4, 2, 5, 1 << 31)),
    (9, struct.pack("<IQ", 8, 0)),
    (9, struct.pack("<IQ", 8, 2) + _strings(b"a", b"\xff")),
    (9, struct.pack("<IQf", 6, 1, float("nan"))),
    (9, struct.pack("<IQ", 9, 1) + struct.pack("<IQI", 4, 1, 1)),
    (9, struct.pack("<IQ", 4, 1 << 62)),
    (9, struct.pack("<IQ", 8, 1 << 62)),
    (13, b""),
    (1 << 31, b""),
)


def gguf_parts(header: Any, data: bytes) -> _Gguf:
    """The parts of a header that was read."""
    kv = [[key.encode(), kind, raw] for key, (kind, raw) in header.kv.items()]
    start = min((tensor.offset for tensor in header.tensors), default=0)
    tensors = [[t.name.encode(), list(t.shape), t.type_id, t.offset - start] for t in header.tensors]
    return _Gguf(kv, tensors, data)


def gguf_bytes(parts: _Gguf, version: int = 3, counts: tuple[int, int] | None = None) -> bytes:
    """The file of these parts."""
    tensors, pairs = counts or (len(parts.tensors), len(parts.kv))
    out = [struct.pack("<4sIQQ", b"GGUF", version, tensors, pairs)]
    for key, kind, raw in parts.kv:
        out += (_strings(key), struct.pack("<I", kind), raw)
    for name, shape, kind, offset in parts.tensors:
        out += (_strings(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset))
    head = b"".join(out)
    return head + bytes(-len(head) % 32) + parts.data


def of_gguf(parts: _Gguf) -> Mutate:
    """What mutates a GGUF of these parts."""

    def mutate(random: random.Random, data: bytes) -> bytes:
        if random.random() < 0.25:
            return of_bytes(random, data)
        kv, tensors = [list(each) for each in parts.kv], [list(each) for each in parts.tensors]
        version, counts, tail = 3, None, parts.data
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            pair, tensor = random.choice(kv), random.choice(tensors)
            match random.randrange(13):
                case 0:
                    pair[0] = random.choice((*_NASTY, *(each[0] for each in kv)))
                case 1 | 2 | 3 | 4:
                    pair[1:] = random.choice(_GGUF_VALUES)
                case 5:
                    kv.remove(pair)
                    kv = kv or [pair]
                case 6:
                    tensor[0] = random.choice(
                        (*_NASTY, *(each[0] for each in tensors), b"blk.99999999999999999999.x")
                    )
                case 7:
                    tensor[1] = [
                        random.choice((0, 1, 32, 256, *_NUMBERS)) for _ in range(random.randrange(6))
                    ]
                case 8:
                    tensor[2] = random.choice((*range(45), 133, 151, 1 << 31))
                case 9:
                    tensor[3] = random.choice(_NUMBERS)
                case 10:
                    counts = random.choice(_NUMBERS), random.choice((len(kv), *_NUMBERS))
                case 11:
                    names = (
                        b"split.count",
                        b"split.no",
                        b"split.tensors.count",
                        b"general.alignment",
                        b"general.type",
                    )
                    kv.append([random.choice(names), *random.choice(_GGUF_VALUES)])
                case 12:
                    tail = tail[: random.randrange(len(tail) + 1)]
        return gguf_bytes(_Gguf(kv, tensors, tail), version, counts)

    return mutate
