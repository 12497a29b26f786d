"""Projectors from a config to a card: what they make of pictures, and what is refused."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from checkout import Checkout
from quantmill.engine.projector import Projector, width_of
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.measure.projector import measure, relative_errors
from quantmill.progress import Log
from quantmill.store import Store

PATCHES, WIDTH = 4, 96


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_projector(tmp_path_factory.mktemp("model") / "mmproj.gguf")


def opened(path: Path) -> Projector:
    return Projector(path, read_header(path), 1)


def test_a_picture_becomes_the_same_vectors_whatever_came_before(source: Path, tmp_path: Path) -> None:
    one, other = picture(tmp_path / "one.png"), picture(tmp_path / "other.png", seed=1)
    with opened(source) as projector:
        first, between, again = (projector.embed(medium) for medium in (one, other, one))
    assert first.shape == (PATCHES, WIDTH) and width_of(read_header(source)) == WIDTH
    assert (first == again).all() and not np.allclose(first, between)


def test_vectors_are_units_of_the_store(source: Path, tmp_path: Path) -> None:
    media = [picture(tmp_path / "one.png"), picture(tmp_path / "other.png", seed=1)]
    for made, reused in ((2, 0), (0, 2)):
        store = Store(tmp_path / "store")
        vectors, _ = measure(
            source, media, identity={"model": "m"}, threads=1, store=store, log=Log(tmp_path / "log")
        )
        assert [each.shape for each in vectors] == [(PATCHES, WIDTH)] * 2
        assert (store.made, store.reused) == (made, reused)


def test_the_relative_error_is_the_length_of_the_change_over_the_vectors() -> None:
    theirs = np.array([[3, 4], [0, 2], [0, 0]], np.float32)
    ours = np.array([[3, 4.5], [1, 2], [0, 0]], np.float32)
    assert relative_errors(ours, theirs) == pytest.approx([0.1, 0.5, 0])


def test_what_is_no_picture_is_refused_in_one_line(source: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    with opened(source) as projector, pytest.raises(QuantmillError) as raised:
        projector.embed(tmp_path / "text.png")
    assert str(raised.value) == (
        f"{tmp_path}/text.png: is no picture or sound that mmproj.gguf can read; "
        "give a picture (JPEG, PNG, BMP) or a sound (WAV, MP3, FLAC), as the model takes"
    )


def test_a_sound_is_refused_by_a_projector_of_pictures(source: Path, tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(16000) / 10)).astype("<i2").tobytes())
    with opened(source) as projector, pytest.raises(QuantmillError) as raised:
        projector.embed(tmp_path / "tone.wav")
    assert "tone.wav: is no picture or sound that mmproj.gguf can read; give a picture" in str(raised.value)


def test_its_language_model_may_stand_beside_it_and_must_be_of_its_width(
    source: Path, tmp_path: Path
) -> None:
    llama = Path(__file__).parents[1] / "data" / "tiny-llama.gguf"
    fits = models.write_projector(tmp_path / "fits.gguf", out=256)
    with Projector(fits, read_header(fits), 1, llama) as beside, opened(fits) as alone:
        one = picture(tmp_path / "one.png")
        assert (beside.embed(one) == alone.embed(one)).all()
    with pytest.raises(QuantmillError, match=r"mmproj\.gguf: libmtmd cannot load it \(.*mismatch"):
        Projector(source, read_header(source), 1, llama)


def test_a_file_that_is_no_projector_is_refused(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    with pytest.raises(QuantmillError, match=r"m\.gguf: libmtmd cannot load it \("):
        opened(source)


def test_from_the_config_to_the_card(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    models.write_projector(checkout.folder / "mmproj.gguf")
    picture(checkout.folder / "picture.png")
    checkout.configure(
        lambda config: config.update(
            models={"mmproj": {"source": {"path": "mmproj.gguf"}}},
            corpora={},
            imatrix=None,
            sensitivity=None,
            recipes=["BF16", "Q8_0", "Q4_K_M"],
            bench={"projector": {"media": ["picture.png"]}},
        )
    )
    checkout.run()
    card = (checkout.folder / "results" / "mmproj" / "card" / "README.md").read_text("utf-8")
    assert "| Distance | Relative error |" in card and "`picture.png` (4 vectors)" in card
    assert "llama-server -m MODEL.gguf --mmproj mmproj-" in card
    assert "| `Q4_K_M` | q4_K | q5_0 |" in card  # rows of 64 and 96 values
    assert checkout.due() == set()
    picture(checkout.folder / "picture.png", seed=1)
    due = {f"measure_projector {row}" for row in ("source", "BF16", "Q8_0", "Q4_K_M")}
    assert checkout.due() == {*due, "write_card"}
