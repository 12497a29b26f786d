"""What a lock refuses, and how a split source and a preset are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.files import write_text
from quantmill.formats.allocation import Plan
from quantmill.formats.settings import Lock as Settings
from quantmill.formats.source import MODEL, Model
from quantmill.proof import lock
from quantmill.spec import digest, file_sha256
from reports import complete


def settings(**given: Any) -> Any:
    return complete(Settings, {"model": "m", **given})


def split_source(folder: Path) -> list[Path]:
    """Two files, and the reports of the model that they are."""
    files = [folder / f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(files):
        path.write_bytes(b"x" * (number + 1))
    sha256 = digest("\n".join(map(file_sha256, files)))
    MODEL.write(folder / "model.json", complete(Model, {"sha256": sha256, "bytes": 3}))  # type: ignore[arg-type]
    write_text(folder / "manifest.tsv", "name\n")
    return files


def test_a_split_source_has_the_digest_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = split_source(tmp_path)
    made = lock.source_of(tmp_path, settings(), files)
    assert made["files"] == [
        {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in files
    ]
    assert made["manifest"] == file_sha256(tmp_path / "manifest.tsv")
    files[1].write_bytes(b"yy")
    with pytest.raises(QuantmillError) as error:
        lock.source_of(tmp_path, settings(), files)
    assert str(error.value) == (
        f"{tmp_path / 'model.json'}: is not of this source any more; delete it to have it made again"
    )


def test_a_source_alone_is_not_read(tmp_path: Path) -> None:
    MODEL.write(tmp_path / "model.json", complete(Model, {"sha256": "s", "bytes": 3}))  # type: ignore[arg-type]
    write_text(tmp_path / "manifest.tsv", "name\n")
    made = lock.source_of(tmp_path, settings(), [Path("gone/m.gguf")])
    assert made["files"] == [{"file": "m.gguf", "bytes": 3, "sha256": "s"}]


def test_an_engine_that_is_not_the_runs_is_refused() -> None:
    with pytest.raises(QuantmillError) as error:
        lock.engine_of("mainline", "0" * 64)
    assert str(error.value).startswith("engine mainline: has other libraries here (")
    assert str(error.value).endswith(
        ") than where the run was started (000000000000); use the same environment on all machines"
    )


@pytest.mark.parametrize(
    ("base", "rules", "more", "preset"),
    [
        ("Q4_K_M", 0, {}, "Q4_K_M"),
        ("Q4_K_M", 1, {}, None),
        ("Q4_K_M", 0, {"split": 1}, None),
        ("Q4_K_M", 0, {"rounding": "gptq"}, None),
        ("Q4_K_M", 0, {"engine": "ik"}, None),
        ("q4_0", 0, {}, None),  # one type for all, where the preset Q4_0 has another for the output
    ],
)
def test_a_preset_is_what_llama_quantize_makes_alone(
    base: str, rules: int, more: dict[str, Any], preset: str | None
) -> None:
    plan: Any = complete(Plan, {"base": base, "rules": rules})
    assert lock._preset(plan, {"imatrix": None, **more}) == preset  # type: ignore[typeddict-item]
