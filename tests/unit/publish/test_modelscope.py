"""Publishing to ModelScope on loopback: what goes, what is not sent twice, what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelscope import TOKEN, ModelScope, serving
from quantmill.errors import QuantmillError
from quantmill.progress import Log
from quantmill.publish import modelscope
from quantmill.publish.files import ByteRange, Item

REPO = "me/tiny-GGUF"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    with serving() as server:
        server.repositories[REPO] = {}
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.address)
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
        yield server


def item(path: str, content: bytes | Path | ByteRange, data: bytes) -> Item:
    return Item(path, content, len(data), hashlib.sha256(data).hexdigest())


def upload(folder: Path, items: list[Item]) -> str:
    with Log(folder / "log").progress("upload", 1, "bytes") as progress:
        return modelscope.Repository(REPO).upload(items, None, "Publish tiny", progress, folder)


@pytest.mark.parametrize("tells_digests", [True, False])
def test_small_files_go_within_the_commit_and_large_ones_before_it(
    server: ModelScope, tmp_path: Path, tells_digests: bool
) -> None:
    server.tells_digests = tells_digests
    large = b"large" * 500_000
    (tmp_path / "m.gguf").write_bytes(large)
    items = [
        item("README.md", b"# tiny", b"# tiny"),
        item("m.gguf", tmp_path / "m.gguf", large),
        item("m-00001-of-00002.gguf", ByteRange(b"head", tmp_path / "m.gguf", 4, 9), b"head" + large[4:13]),
    ]
    assert upload(tmp_path, items) == f"{server.address}/models/{REPO}"
    files = server.repositories[REPO]
    assert {path: hashlib.sha256(data).hexdigest() for path, data in files.items()} == {
        one.path: one.sha256 for one in items
    }
    held = modelscope.Repository(REPO).holdings()
    assert held is not None
    assert {path: stored.sha256 for path, stored in held.files.items()} == {
        one.path: one.sha256 for one in items
    }
    assert modelscope.Repository(REPO).read("README.md", "") == b"# tiny"
    sent = server.asked.count("PUT /lfs/put/object")
    upload(tmp_path, items)
    assert sent == server.asked.count("PUT /lfs/put/object") == 2


def test_the_token_goes_to_no_other_host(server: ModelScope, tmp_path: Path) -> None:
    large = b"large" * 500_000
    (tmp_path / "m.gguf").write_bytes(large)
    with serving() as elsewhere:
        server.objects_at, elsewhere.objects = elsewhere.address, server.objects
        upload(tmp_path, [item("m.gguf", tmp_path / "m.gguf", large)])
        assert (elsewhere.asked, elsewhere.tokens) == (["PUT /lfs/put/object"], [None])
    assert all(server.tokens) and server.repositories[REPO]["m.gguf"] == large


def test_a_repository_that_is_not_there(server: ModelScope) -> None:
    assert modelscope.Repository("me/other").holdings() is None
    assert modelscope.Repository("me/other").missing.startswith("make it at http://127.0.0.1:")


def test_a_refused_token_is_one_line_without_it(
    server: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "wrong-token")
    with pytest.raises(QuantmillError) as raised:
        modelscope.Repository(REPO).holdings()
    line = str(raised.value)
    assert line.startswith(f"{REPO}: ModelScope refuses GET /api/v1/models/{REPO}/repo/files (401 ")
    assert line.endswith("; set MODELSCOPE_API_TOKEN to a token of your account there")
    assert "\n" not in line and "wrong-token" not in line and "Bearer (token)" in line


def test_a_rejected_commit_is_one_line(server: ModelScope, tmp_path: Path) -> None:
    server.rejects = "the branch\nis protected"
    with pytest.raises(QuantmillError, match=r"ModelScope refuses POST .*/commit/master \(200 .*protected"):
        upload(tmp_path, [item("README.md", b"x", b"x")])


def test_no_answer_at_all(server: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(modelscope.UnreachableError, match=r"me/tiny-GGUF: cannot be reached \("):
        modelscope.Repository(REPO).holdings()
