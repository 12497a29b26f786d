"""Fetching a source: whole or not at all, and errors in one line."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from quantmill.errors import QuantmillError
from quantmill.model.fetch import fetch

COMMIT = "0123456789" * 4


def test_a_file_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(repo: str, file: str, *, revision: str, local_dir: Path) -> str:
        path = local_dir / file
        path.parent.mkdir(parents=True)
        path.write_text(f"{repo} {revision}", encoding="utf-8")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    out = tmp_path / "source" / "q" / "x.gguf"
    fetch("a/b", "q/x.gguf", COMMIT, out)
    assert out.read_text("utf-8") == f"a/b {COMMIT}"
    assert [path.name for path in out.parent.iterdir()] == ["x.gguf"]


@pytest.mark.parametrize(
    "error", [ConnectionError("no route to the host"), EntryNotFoundError("404\nnot there")]
)
def test_what_cannot_be_fetched_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def download(*_args: object, **_options: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(QuantmillError, match=r"^a/b/x.gguf at 012345678901: cannot be fetched \(") as refused:
        fetch("a/b", "x.gguf", COMMIT, tmp_path / "x.gguf")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "x.gguf").exists()
