"""A model without its prediction layers, for the engine that cannot load them."""

import hashlib
from pathlib import Path

import pytest

from quantmill.engine import library
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.measure import without_mtp

DATA = Path(__file__).parents[2] / "data"
MTP = DATA / "tiny-mtp-Q8_0.gguf"


def digests(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    return {
        t.name: hashlib.sha256(data[t.offset : t.offset + t.bytes]).hexdigest()
        for t in ggufio.read_header(path).tensors
    }


def test_llama_cpp_gets_the_file_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_in_use", ["mainline"])
    with without_mtp.evaluable(MTP) as path:
        assert path == MTP


def test_ik_gets_a_copy_without_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_in_use", ["ik"])
    with without_mtp.evaluable(MTP) as path:
        header, whole = ggufio.read_header(path), ggufio.read_header(MTP)
        before, after = digests(MTP), digests(path)
        assert after == {name: value for name, value in before.items() if not name.startswith("blk.2.")}
        assert (header.layers, whole.layers) == (2, 3)
        assert "qwen35.nextn_predict_layers" not in header.kv
        assert header.value("qwen35.attention.recurrent_layers") == [True, False]
        assert header.value("tokenizer.ggml.tokens") == whole.value("tokenizer.ggml.tokens")
    assert not path.exists()


def test_a_model_without_prediction_is_no_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_in_use", ["ik"])
    with without_mtp.evaluable(DATA / "tiny-llama.gguf") as path:
        assert path == DATA / "tiny-llama.gguf"


def test_no_room_for_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_in_use", ["ik"])
    usage = without_mtp.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(without_mtp.shutil, "disk_usage", lambda folder: usage)
    with (
        pytest.raises(
            QuantmillError, match=r"2,799,392 bytes; \S+ has 1,000; free some space, or set TMPDIR"
        ),
        without_mtp.evaluable(MTP),
    ):
        raise AssertionError
