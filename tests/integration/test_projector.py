"""Projectors from a config to a card: what they make of pictures, and what is refused."""

from __future__ import annotations

import ctypes
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
from checkout import Checkout
from quantmill.engine.conversation import Reader
from quantmill.engine.evaluator import logits_at
from quantmill.engine.llama import native
from quantmill.engine.projector import Projector, bindings, width_of
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.formats.projected import PROJECTED
from quantmill.measure import answers
from quantmill.measure.answers import Asked
from quantmill.measure.projector import measure, relative_errors
from quantmill.progress import Log
from quantmill.store import Store

PATCHES, WIDTH = 4, 96
LLAMA = Path(__file__).parents[1] / "data" / "tiny-llama.gguf"


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def sound(path: Path, pitch: int = 10) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(16000) / pitch)).astype("<i2").tobytes())
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


def test_a_sound_becomes_vectors_and_is_asked_about(tmp_path: Path) -> None:
    """By Whisper's encoder and Ultravox's projector: 30 seconds, the rest silence, are 15 vectors."""
    source = models.write_listener(tmp_path / "m.gguf")
    low, high = sound(tmp_path / "low.wav"), sound(tmp_path / "high.wav", 3)
    with Projector(source, read_header(source), 1, LLAMA) as projector:
        theirs, other, again = (projector.embed(medium) for medium in (low, high, low))
    assert theirs.shape == (15, 256) and (theirs == again).all() and not np.allclose(theirs, other)
    asked = Asked("What do you hear?", LLAMA, source, {"engine": "e"}, 1)
    store, log = Store(tmp_path / "store"), Log(tmp_path / "log")
    answered = answers.measure(asked, [low], [theirs], [other], model="file", store=store, log=log)
    assert answered["kld"]["mean"] > 0 and answered["answers"][0]["file"] == "low.wav"


def test_a_sound_is_refused_by_a_projector_of_pictures(source: Path, tmp_path: Path) -> None:
    with opened(source) as projector, pytest.raises(QuantmillError) as raised:
        projector.embed(sound(tmp_path / "tone.wav"))
    assert "tone.wav: is no picture or sound that mmproj.gguf can read; give a picture" in str(raised.value)


def test_its_language_model_may_stand_beside_it_and_must_be_of_its_width(
    source: Path, tmp_path: Path
) -> None:
    fits = models.write_projector(tmp_path / "fits.gguf", out=256)
    with Projector(fits, read_header(fits), 1, LLAMA) as beside, opened(fits) as alone:
        one = picture(tmp_path / "one.png")
        assert (beside.embed(one) == alone.embed(one)).all()
    with pytest.raises(QuantmillError, match=r"mmproj\.gguf: libmtmd cannot load it \(.*mismatch"):
        Projector(source, read_header(source), 1, LLAMA)


def test_the_vectors_of_another_file_change_the_answer(tmp_path: Path) -> None:
    source = models.write_projector(tmp_path / "fits.gguf", out=256)
    media = [picture(tmp_path / "one.png"), picture(tmp_path / "other.png", seed=1)]
    with Projector(source, read_header(source), 1, LLAMA) as projector:
        theirs = [projector.embed(medium) for medium in media]
    asked = Asked("What is this?", LLAMA, source, {"engine": "e"}, 1)
    for name, ours, made in (("source", theirs, 4), ("source", theirs, 0), ("file", theirs[::-1], 2)):
        store = Store(tmp_path / "store")
        log = Log(tmp_path / "log")
        answered = answers.measure(asked, media, theirs, ours, model=name, store=store, log=log)
        assert (store.made, store.reused) == (made, 4 - made)
        assert [one["tokens"] <= 64 for one in answered["answers"]] == [True, True]
        assert len(answered["by_token"]) == sum(one["tokens"] for one in answered["answers"])
        same = answered["kld"]["max"] == 0 and answered["same_top"]["mean"] == 1
        assert same == (name == "source")


def test_the_answer_is_what_the_model_gives_with_libmtmds_own_vectors(tmp_path: Path) -> None:
    """As llama-mtmd-cli evaluates a prompt: by mtmd_helper_eval_chunk_single, which encodes the picture."""
    source, one = models.write_projector(tmp_path / "fits.gguf", out=256), picture(tmp_path / "one.png")
    prompt = answers.prompt_about("What is this?", "<__media__>", LLAMA)
    with Projector(source, read_header(source), 1, LLAMA) as projector, Reader(LLAMA, projector, 1) as reader:
        vectors = projector.embed(one)
        answer = reader.answer(one, prompt, vectors, 8)
        logits = reader.predictions(one, prompt, vectors, answer)
        assert logits.argmax(axis=1).tolist() == answer.tolist()
        position = ctypes.c_int32(0)
        with projector.parts(one, prompt.encode()) as parts:
            assert [projector.is_text(part) for part in parts] == [True, False, True]
            context = reader._context(sum(map(projector.size, parts)) + 8, 512)
            for number, part in enumerate(parts):
                status = bindings().mtmd_helper_eval_chunk_single(
                    projector.handle, context, part, position, 0, 512, number == 2, ctypes.byref(position)
                )
                assert status == 0
        theirs = logits_at(native.llama_get_logits_ith(context, -1), 1, logits.shape[1]).copy()
        native.llama_free(context)
    assert (theirs[0] == logits[0]).all()


def test_a_file_that_is_no_projector_is_refused(tmp_path: Path) -> None:
    source = models.write_bert(tmp_path / "m.gguf")
    with pytest.raises(QuantmillError, match=r"m\.gguf: libmtmd cannot load it \("):
        opened(source)


def test_from_the_config_to_the_card(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    models.write_projector(checkout.folder / "mmproj.gguf", out=256)  # the width of tiny-llama.gguf
    shutil.copy(LLAMA, checkout.folder / "llama.gguf")
    picture(checkout.folder / "picture.png")
    seen = {"projector": {"media": ["picture.png"], "question": "What is this?"}}
    models.write_listener(checkout.folder / "ears.gguf")
    sound(checkout.folder / "tone.wav")
    heard = {"projector": {"media": ["tone.wav"], "question": "What do you hear?"}}
    kinds = {"recipes": ["BF16", "Q8_0", "Q4_K_M"], "language_model": "llama"}
    checkout.configure(
        lambda config: config.update(
            models={
                "mmproj": {"source": {"path": "mmproj.gguf"}, "bench": seen, **kinds},
                "ears": {"source": {"path": "ears.gguf"}, "bench": heard, "language_model": "llama"},
                "llama": {"source": {"path": "llama.gguf"}},
            },
            corpora={},
            imatrix=None,
            sensitivity=None,
            recipes=["Q8_0"],
            bench={},
            publish={"repo": "me/both-GGUF"},
        )
    )
    checkout.run()
    card = (checkout.folder / "results" / "mmproj" / "card" / "README.md").read_text("utf-8")
    assert "| Distance | Relative error | KLD of the answer | Same top |" in card
    assert "`llama.gguf` was asked `What is this?` about each." in card
    assert "`picture.png` (4 vectors)" in card
    assert "llama-server -m llama-Q8_0.gguf --mmproj mmproj-" in card
    reports = [
        PROJECTED.read(checkout.folder / "results" / "mmproj" / "bench" / row / "projector.json")
        for row in ("source", "BF16", "Q8_0", "Q4_K_M")
    ]
    divergence = [report["answer"]["kld"]["mean"] for report in reports]
    assert 0 == divergence[0] <= divergence[2] < divergence[3]
    assert "| `Q4_K_M` | q4_K | q5_0 |" in card  # rows of 64 and 96 values
    llama = (checkout.folder / "results" / "llama" / "card" / "README.md").read_text("utf-8")
    assert "## Projectors" in llama and "| [`ears-Q8_0`](ears-Q8_0.gguf) |" in llama
    assert "hf download me/both-GGUF mmproj-BF16.gguf --local-dir ." in llama
    assert "A projector beside a file takes its own size on top: `mmproj-BF16.gguf` 515.1 KiB" in llama
    ears = (checkout.folder / "results" / "ears" / "card" / "README.md").read_text("utf-8")
    assert "`tone.wav` (15 vectors)" in ears and "asked `What do you hear?`" in ears
    assert checkout.due() == set()
    picture(checkout.folder / "picture.png", seed=1)
    due = {f"measure_projector {row}" for row in ("source", "BF16", "Q8_0", "Q4_K_M")}
    assert checkout.due() == {*due, "write_card"}
