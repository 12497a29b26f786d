"""The stage `measure.imatrix` as the rules call it: killed, resumed, and refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from quantmill import spec
from quantmill.files import writing
from quantmill.formats.chunks import Chunk, write_chunks

MODEL = Path(__file__).parents[1] / "data" / "tiny-llama.gguf"
CHUNKS, CONTEXT = 48, 512
OUTPUTS = ("i.gguf", "i.dat")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus of random tokens, long enough to be interrupted."""
    random = np.random.default_rng(3)
    with writing(tmp_path / "c.parquet") as file:
        rows = random.integers(0, 2048, (CHUNKS, CONTEXT), dtype=np.int32)
        write_chunks(file, [Chunk("noise", row, []) for row in rows])
    return tmp_path


def command(folder: Path, store: str = "store", chunks: int = CHUNKS) -> list[str]:
    config = {"corpus": "c", "chunks": chunks, "context": CONTEXT}
    made = spec.make("measure.imatrix", config, {"model": "m"}, engine="e")
    words = [
        "--spec",
        made,
        "--model",
        MODEL,
        "--corpus",
        folder / "c.parquet",
        "--report",
        folder / "i.json",
    ]
    words += [
        "--gguf",
        folder / "i.gguf",
        "--dat",
        folder / "i.dat",
        "--store",
        folder / store,
        "--threads",
        2,
    ]
    return [sys.executable, "-m", "quantmill.measure.imatrix", *map(str, words)]


def units(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in (folder / "store").glob("units/*/*"))


def test_a_killed_run_resumes_where_it_stood(folder: Path) -> None:
    process = subprocess.Popen(command(folder), stderr=subprocess.DEVNULL)
    while units(folder) < 2 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (folder / "i.gguf").exists()
    finished = units(folder)
    done = subprocess.run(command(folder), capture_output=True, text=True, check=True)
    made, reused = map(int, re.search(r"(\d+) units made, (\d+) reused", done.stderr).groups())
    assert (made, reused) == (CHUNKS // 8 - finished, finished)
    resumed = [(folder / name).read_bytes() for name in OUTPUTS]
    subprocess.run(command(folder, "another-store"), capture_output=True, check=True)
    assert [(folder / name).read_bytes() for name in OUTPUTS] == resumed


def test_a_corpus_of_too_few_chunks_is_refused(folder: Path) -> None:
    done = subprocess.run(command(folder, chunks=CHUNKS + 1), capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: .*c\.parquet: holds 48 chunks of 512 tokens, not 49 of 512; .*\n", done.stderr
    )
    assert not (folder / "i.gguf").exists()


def test_a_model_that_llama_cpp_cannot_load_is_refused(folder: Path) -> None:
    broken = folder / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes().replace(b"llama.block_count", b"llama.block_cXunt"))
    words = [str(broken) if word == str(MODEL) else word for word in command(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr
    assert "broken.gguf" in errors[0] and "block_count" in errors[0]
