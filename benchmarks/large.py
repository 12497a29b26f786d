"""A model of 3 B parameters of random weights, and what quantizing and hashing it take.

Random weights have the shapes and the speed of trained ones, and nothing to say: only bytes, seconds and
memory are measured of them.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pairs import Figures, alternate, compare, run
from rows import Bench, Row, _figures, _row, same_tensors
from stages import ROOT, THREADS, Command, Workspace

LAYERS, WIDTH, FEED_FORWARD, HEADS, GROUPS = 28, 3072, 8192, 24, 8
_FREE: Final = 14 << 30  # bytes of disk: the model, a file of each side
_BLOCK: Final = 1 << 24
_TEMPLATE: Final = "engine: mainline\nbase: Q4_K_M\nimatrix: none\n"


def shapes(vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors of a llama, rows first."""
    keys = WIDTH // HEADS * GROUPS
    yield "token_embd.weight", (vocabulary, WIDTH)
    for layer in range(LAYERS):
        yield f"blk.{layer}.attn_norm.weight", (WIDTH,)
        yield f"blk.{layer}.ffn_norm.weight", (WIDTH,)
        for role, rows, columns in (
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", keys, WIDTH),
            ("attn_v", keys, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", FEED_FORWARD, WIDTH),
            ("ffn_up", FEED_FORWARD, WIDTH),
            ("ffn_down", WIDTH, FEED_FORWARD),
        ):
            yield f"blk.{layer}.{role}.weight", (rows, columns)
    yield "output_norm.weight", (WIDTH,)
    yield "output.weight", (vocabulary, WIDTH)


def make(path: Path, vocabulary_of: Path) -> None:
    """Write the model, bf16, with the vocabulary of another."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(vocabulary_of)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("random-3b")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            first, *of = field.types
            writer.add_key_value(name, field.contents(), first, of[0] if of else None)
    drawn = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(0.02)
    block = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    tensors = list(shapes(vocabulary))
    for name, shape in tensors:
        flat = len(shape) == 1
        kind = gguf.GGMLQuantizationType.F32 if flat else gguf.GGMLQuantizationType.BF16
        size = int(np.prod(shape)) * (4 if flat else 2)
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (_, shape) in enumerate(tensors):
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            data = np.resize(np.roll(block, 12345 * number), shape)
            writer.write_tensor_data(data)
    writer.close()


def of_3b(bench: Bench) -> Iterable[Row]:
    """Hashing, one file, and one changed rule of it, at 3 B parameters."""
    folder = ROOT / "benchmarks" / "build" / "work" / "random-3b"
    model = folder / "random-3b-BF16.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        if shutil.disk_usage(folder).free < _FREE:
            print(f"error: {folder}: row 3b needs {_FREE >> 30} GiB of disk", file=sys.stderr)
            return
        part = model.with_suffix(".part")
        make(part, bench.work.model)
        part.rename(model)
    work = Workspace(model, folder, bench.work.tools)
    size = model.stat().st_size
    print(f"{model.name}: {size / 2**30:.2f} GiB", file=sys.stderr)

    def hashed() -> Figures:
        done = run([*work.manifest()])
        return _figures(done) | {"passes": done.read / size}

    hashes = alternate(hashed, lambda: _figures(run(["sha256sum", model])), 1)
    note = f"{hashes[0][0]['passes']:.2f} passes over the bytes of the source"
    yield _row(
        "3 B: the source listed and hashed, beside sha256sum", compare(hashes, "seconds"), checked=note
    )

    template = work.path("one.yaml.j2")
    template.write_text(_TEMPLATE, encoding="utf-8")
    changed = work.path("changed.yaml.j2")
    changed.write_text(
        _TEMPLATE + "rules:\n  - {role: attn_output, layers: [0], type: q8_0, why: one}\n", encoding="utf-8"
    )
    config = {"imatrix": None}
    for name, text in (("Q4_K_M", template), ("changed", changed)):
        run(work.plan(name, text, {}, imatrix=False))

    written: list[float] = []

    def ours() -> Figures:
        work.empty_store()
        done = run(_write(work, "Q4_K_M", config))
        written.append(done.written / work.path("gguf/Q4_K_M.gguf").stat().st_size)
        return _figures(done)

    theirs = work.path("theirs/Q4_K_M.gguf")
    tool: Command = [work.tools / "llama-quantize", model, theirs, "Q4_K_M", str(THREADS)]
    pairs = alternate(ours, lambda: _figures(run(tool)), min(bench.repeat, 2))
    same = same_tensors(work.path("gguf/Q4_K_M.gguf"), theirs)
    same += f"; {max(written):.3f} bytes written a byte of file (target ≤ 1.1)"
    yield _row("3 B: cold quantize, Q4_K_M", compare(pairs, "seconds"), most=1.0, checked=same)
    yield _row("3 B: its peak memory", compare(pairs, "peak"), unit="MiB", scale=1 << 20)

    again = run(_write(work, "changed", config))
    whole = [(_figures(again), theirs) for _, theirs in pairs[:1]]
    size = work.path("gguf/changed.gguf").stat().st_size
    what = f"3 B: one changed rule, against the whole file of {size / 2**30:.2f} GiB"
    yield _row(what, compare(whole, "seconds"), most=0.03)


def _write(work: Workspace, name: str, config: dict[str, None]) -> Command:
    given: Command = ["--manifest", work.path("manifest.tsv"), "--plan", work.path(f"plans/{name}.tsv")]
    given += ["--report", work.path(f"plans/{name}.json")]
    given += ["--gguf", work.path(f"gguf/{name}.gguf"), "--facts", work.path(f"gguf/{name}.json")]
    return work.stage("quantize.write", config, "--model", work.model, *given, store=True)
