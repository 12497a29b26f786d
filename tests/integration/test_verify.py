"""The lock and its verification by the real snakemake; what differs is named by tensor, type and cause."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkout import Checkout
from quantmill.files import read_json, write_json
from quantmill.formats import ggufio, imatrix
from quantmill.formats.proof import LOCK, VerifiedFile
from quantmill.proof import rebuild
from quantmill.proof.rebuild import Job, rebuilt
from quantmill.spec import file_sha256

MIX = {"name": "mix", "template": "preset", "base": "Q4_K_M", "embeddings": "q8_0", "output": "q6_K"}
PARTS = {"name": "parts", "template": "preset", "base": "Q8_0", "split": {"max": "1 MB"}}
LEAN: dict[str, Any] = {"sensitivity": None, "bench": {}, "recipes": ["Q8_0", MIX, PARTS]}
FLIPPED = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with three recipes built, one of them split."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "a checkout")
    checkout.configure(lambda config: config.update(LEAN))
    checkout.run()
    return checkout


@pytest.fixture
def checkout(built: Checkout, tmp_path: Path) -> Checkout:
    """A copy of it."""
    return built.copy(tmp_path / "a checkout")


@pytest.fixture
def verified(checkout: Checkout, tmp_path: Path) -> Iterator[Callable[..., VerifiedFile]]:
    """What comes of making a recipe's file again, in this process."""

    def of(recipe: str, mode: str = "all") -> VerifiedFile:
        fresh = tmp_path / "fresh"
        fresh.mkdir(exist_ok=True)
        source, store = checkout.folder / "tiny-llama.gguf", tmp_path / "store"
        return rebuilt(
            Job(checkout.result("."), source, recipe, mode, store, 1 << 30, fresh, 2, tmp_path / "log")
        )

    yield of
    assert not list((tmp_path / "fresh").rglob("*.gguf"))


def differences(outcome: VerifiedFile) -> list[tuple[str, str, str]]:
    assert outcome["refused"] is None
    return [(one["tensor"], one["type"], one["cause"]) for one in outcome["differences"]]


def flip(path: Path, tensor: str, bit: int = 1) -> str:
    """Flip a bit of a tensor in a file, in an odd byte of its middle; its type."""
    found = next(one for one in ggufio.read_header(path).tensors if one.name == tensor)
    data = bytearray(path.read_bytes())
    data[found.offset + found.bytes // 2 | 1] ^= bit
    path.write_bytes(data)
    return str(found.type)


def lines(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(("tiny: ", "error: "))]


def test_every_file_is_made_again_and_a_flipped_byte_is_named(checkout: Checkout) -> None:
    before = {path: path.read_bytes() for path in checkout.made()}
    good = [
        "tiny: tiny-Q8_0.gguf: 21 tensors made again, bit for bit the same",
        "tiny: tiny-mix.gguf: 21 tensors made again, bit for bit the same",
        "tiny: tiny-parts/tiny-parts-00001-of-00004.gguf: 21 tensors made again, bit for bit the same",
    ]
    assert lines(checkout.run("verify").stdout) == good
    report = checkout.result("verify.json")
    assert read_json(report)["lock"] == file_sha256(checkout.result("lock.json"))
    few = lines(checkout.run("verify", "--config", "verify=sample").stdout)
    assert few == [line.replace("21 tensors", "8 of 21 tensors") for line in good]
    assert {path: path.read_bytes() for path in checkout.made()} == before | {report: report.read_bytes()}
    assert not [path for path in checkout.result(".").iterdir() if path.name.startswith(".")]
    assert checkout.due() == set()  # a verification makes nothing stale, and is no part of anything

    kind = flip(checkout.result("gguf/tiny-mix.gguf"), FLIPPED)
    done = checkout.snakemake("verify")
    assert done.returncode == 1
    named = f"tiny: tiny-mix.gguf: {FLIPPED} ({kind}): the file was changed after it was locked"
    assert lines(done.stdout) == [good[0], named, good[2]]
    what = "verify: 1 file not verified: tiny mix; the lines above say why, verify.json has them too"
    assert f"error: {what}" in done.stderr.splitlines()
    bad = checkout.snakemake("verify", "--config", "verify=some")
    assert bad.stderr.splitlines()[-1] == (
        "error: --config verify: some is neither all nor sample; give it one of them"
    )


def test_the_same_inputs_have_the_same_lock_which_tells_nothing_of_the_machine(
    checkout: Checkout, tmp_path: Path
) -> None:
    names = "lock.json", "statements/tiny-mix.gguf.derivation.json"
    before = [checkout.result(name).read_bytes() for name in names]
    shutil.rmtree(checkout.folder / "results")
    moved = Checkout(checkout.folder.rename(tmp_path / "elsewhere"))
    moved.run("results/tiny/lock.json", cores=2)
    assert [moved.result(name).read_bytes() for name in names] == before
    for text in before:
        for word in (str(tmp_path), os.uname().nodename, str(Path.home()), sys.prefix):
            assert word.encode() not in text
    assert json.loads(before[0])["recipes"]["mix"]["plan"] == file_sha256(moved.result("plans/mix.tsv"))
    assert list(json.loads(before[0])["corpora"]) == ["calibration"]  # none that only measures


def test_the_card_says_verified_where_the_user_asks_and_the_lock_is_the_same(checkout: Checkout) -> None:
    card = checkout.result("card/README.md")
    checkout.run("verify")
    assert "erified" not in card.read_text("utf-8")
    checkout.configure(lambda config: config.update(LEAN, publish={"verify": "all"}))
    assert checkout.due() == {"write_card"}  # verified already
    checkout.result("verify.json").unlink()
    assert checkout.due() == {"verify_files", "write_card"}
    checkout.run()
    engine = read_json(checkout.result("verify.json"))["files"][0]["engine"][:12]
    words = f"3 of 3 files were made again from `lock.json`, bit for bit, by the engine `{engine}`."
    assert f"**Verified:** {words}" in card.read_text("utf-8")
    assert checkout.due() == set()
    checkout.run("verify")
    assert checkout.due() == set()
    write_json(checkout.result("verify.json"), read_json(checkout.result("verify.json")) | {"lock": "0"})
    checkout.run()
    assert "erified" not in card.read_text("utf-8")


def test_a_tensor_of_a_changed_imatrix_is_named(checkout: Checkout, verified: Any) -> None:
    path = checkout.result("imatrix.gguf")
    read = imatrix.read_gguf(path)
    entries = {
        name: imatrix.Entry(np.array(entry.in_sum2), np.array(entry.counts))
        for name, entry in read.entries.items()
    }
    entries["blk.0.attn_v.weight"].in_sum2[:, ::2] *= 9
    imatrix.write_gguf(path, imatrix.Imatrix(read.dataset, read.chunks, read.context, entries))
    assert differences(verified("mix")) == [
        ("the imatrix", "", "differs from the lock"),
        ("blk.0.attn_v.weight", "q4_K", "the imatrix differs from the lock"),
    ]


def test_each_cause_is_named(checkout: Checkout, verified: Any) -> None:
    lock_file, gguf = checkout.result("lock.json"), checkout.result("gguf/tiny-mix.gguf")
    lock, kind = read_json(lock_file), flip(gguf, FLIPPED)
    lock["recipes"]["mix"]["files"][0]["sha256"] = file_sha256(gguf)  # as it was locked, then
    LOCK.write(lock_file, lock)
    assert differences(verified("mix")) == [(FLIPPED, kind, rebuild.UNEXPLAINED)]
    lock["engines"]["mainline"]["libraries"]["ggml-cpu"] = "0"
    LOCK.write(lock_file, lock)
    cause = "the engine differs from the lock (ggml-cpu)"
    assert differences(verified("mix")) == [(FLIPPED, kind, cause)]
    assert differences(verified("Q8_0")) == []  # another engine that makes the same bytes verifies them
    lock["recipes"]["mix"]["plan"] = "0"
    LOCK.write(lock_file, lock)
    assert differences(verified("mix")) == [
        ("the plan", "", "differs from the lock"),
        (FLIPPED, kind, f"{cause} and the plan differs from the lock"),
    ]


def test_a_source_that_was_changed_in_place_is_named(checkout: Checkout, verified: Any) -> None:
    flip(checkout.folder / "tiny-llama.gguf", FLIPPED, 0x08)  # of an exponent
    (tensor, _, cause), *others = differences(verified("Q8_0"))
    assert (tensor, cause, others) == (FLIPPED, "the source differs from the lock", [])


def test_a_header_and_a_length_are_compared_too(checkout: Checkout, verified: Any) -> None:
    path = checkout.result("gguf/tiny-Q8_0.gguf")
    data = path.read_bytes()
    changed = "the file was changed after it was locked"
    path.write_bytes(data.replace(b"general.architecture", b"general.architectuRe", 1))
    assert differences(verified("Q8_0", "sample")) == [("header", "", changed)]
    path.write_bytes(data + b"x")
    assert differences(verified("Q8_0", "sample")) == [("file", "", changed)]
    path.write_bytes(b"")
    assert len(differences(verified("Q8_0", "sample"))) == 2 + rebuild.SAMPLE
    path.write_bytes(data)
    lock = read_json(checkout.result("lock.json"))
    lock["recipes"]["Q8_0"]["files"][0]["sha256"] = "0"
    LOCK.write(checkout.result("lock.json"), lock)
    assert differences(verified("Q8_0")) == [
        ("file", "", "is made again bit for bit, and the lock is of another file")
    ]
    path.unlink()
    assert verified("Q8_0")["refused"].startswith(f"{path}: cannot be read (No such file or directory); ")


def test_what_is_no_lock_of_this_source_is_refused_in_one_line(checkout: Checkout) -> None:
    path = checkout.result("lock.json")
    lock = read_json(path)
    foreign = lock | {"source": lock["source"] | {"sha256": "1" * 64}}
    other = lock | {"source": lock["source"] | {"manifest": "1" * 64}}
    here = lock["source"]["sha256"][:12]
    cure = "delete it to have it made again"
    cases = {
        json.dumps(
            foreign
        ): f"lock.json: is of another source (sha256 111111111111, the source here has {here}); {cure}",
        json.dumps(lock | {"model": "large"}): f"lock.json: is of another model, large; {cure}",
        json.dumps(other): f"manifest.tsv: is not the one of the lock; {cure}",
        json.dumps({"format": 1}): f"lock.json: no field corpora; {cure}",
        "[1": "lock.json: no valid JSON (Expecting ',' delimiter: line 1 column 3 (char 2)); "
        f"correct it, or {cure}",
    }
    for text, line in cases.items():
        path.write_text(text, encoding="utf-8")
        done = checkout.snakemake("verify")
        assert done.returncode == 1
        assert f"error: results/tiny/{line}" in done.stderr.splitlines()
        assert "Traceback" not in done.stdout + done.stderr


def test_a_key_that_is_none_is_refused_before_work(checkout: Checkout) -> None:
    checkout.configure(lambda config: config.update(LEAN, publish={"sign": "no key"}))
    refused = checkout.snakemake()
    assert refused.returncode == 1
    cure = "name an ssh key: ssh-keygen -t ed25519 makes one"
    assert refused.stderr.splitlines()[-1] == f"error: config.yaml: publish.sign: no such file no key; {cure}"


def test_error_feedback_and_the_other_engine_are_verified_or_the_reason_is_said(tmp_path: Path) -> None:
    pytest.importorskip("ik_llama_cpp")
    recipes = [
        {"name": "fed", "template": "preset", "base": "Q4_K_M", "rounding": "gptq"},
        {"name": "both", "template": "preset", "base": "Q4_K_M", "rounding": "gptaq"},
        {"name": "scaled", "template": "preset", "base": "nvfp4"},
        {"name": "ik", "template": "custom", "engine": "ik", "base": "iq4_k", "rules": []},
    ]
    checkout = Checkout.build(tmp_path / "checkout")
    checkout.configure(lambda config: config.update(LEAN, recipes=recipes))
    checkout.run("results/tiny/lock.json", cores=2)
    same = {"both": 21, "fed": 21, "ik": 21, "scaled": 36}
    good = [
        f"tiny: tiny-{name}.gguf: {count} tensors made again, bit for bit the same"
        for name, count in same.items()
    ]
    assert sorted(lines(checkout.run("verify", cores=2).stdout)) == good
    # second moments that the store has lost are measured again, cross moments are not
    shutil.rmtree(checkout.folder / "results" / ".store" / "units")
    done = checkout.snakemake("verify", cores=2)
    assert done.returncode == 1
    both, *others = sorted(lines(done.stdout))
    assert others == good[1:]
    assert both.startswith("tiny: tiny-both.gguf: not verified: blk.")
    assert both.endswith(
        ": results/tiny/cross/both.json: the store has lost its cross moments; delete it to have it made "
        "again, and give the store more room"
    )
