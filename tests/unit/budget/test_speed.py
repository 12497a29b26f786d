"""The speed of each type: what is measured, where the weights lie, that the store keeps it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest

from budget_data import DATA
from models import write_bert
from quantmill.budget import pace, speed
from quantmill.engine import placement
from quantmill.engine.matmul import Shape, Timer
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.formats.speeds import SPEEDS
from quantmill.progress import Log


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SECONDS", "_SECONDS_OF_PROMPTS", "_SECONDS_OF_SOURCE"):
        monkeypatch.setattr(speed, name, 0.0)
    monkeypatch.setattr(speed, "_LEAST", 1)
    monkeypatch.setattr(speed, "_PROMPTS", 1)
    monkeypatch.setattr(speed, "_RESIDENT", 1 << 18)


def arguments(model: Path, folder: Path, types: list[str]) -> argparse.Namespace:
    spec = {"config": {"types": types}, "engine": "e", "from": {"model": "m"}}
    return argparse.Namespace(
        spec=spec,
        model=model,
        out=folder / "speeds.json",
        threads=1,
        store=folder / "store",
        store_max=1 << 30,
        store_read=[],
    )


@pytest.mark.parametrize("model", ["tiny-moe.gguf", "tiny-llama.gguf"])
def test_each_shape_and_type_of_the_model_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(DATA / model, tmp_path, ["q4_K", "iq2_xxs"])
    speed.main(args, Log(tmp_path / "log"))
    report, header = SPEEDS.read(args.out), read_header(DATA / model)
    clock = pace.Clock.read(args.out, header)
    for tensor in speed.weights_of(header):
        for kind in (tensor.type, "q4_K"):
            assert clock.time(pace.Weight(tensor.name, tensor.shape, kind), "CPU") > 0
    assert [one["name"] for one in report["devices"]] == ["CPU"]
    times = len(report["types"])
    assert len(clock.times) == times
    assert report["source"] is not None and report["source"]["median"] > 0
    assert f"{times + 1} made, 0 reused" in (tmp_path / "log").read_text("utf-8")
    monkeypatch.setattr(speed, "measured", None)
    speed.main(args, Log(tmp_path / "again"))
    assert f"0 made, {times + 1} reused" in (tmp_path / "again").read_text("utf-8")
    assert SPEEDS.read(args.out)["types"] == report["types"]


def test_of_a_header_alone_the_types_are_measured_and_the_source_is_not(tmp_path: Path) -> None:
    whole = DATA / "tiny-llama.gguf"
    data = whole.read_bytes()
    (tmp_path / "header.gguf").write_bytes(
        data[: len(data) - sum(t.bytes for t in read_header(whole).tensors)]
    )
    header = read_header(tmp_path / "header.gguf", data=False)
    assert speed.why_not(header, tmp_path / "header.gguf") == "only its header is here"


def test_a_source_that_has_no_room_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    path = DATA / "tiny-llama.gguf"
    assert speed.why_not(read_header(path), path) == ""
    monkeypatch.setattr(speed.machine, "memory", lambda: speed.machine.Memory(10, 10, "here"))
    assert speed.why_not(read_header(path), path) == "it has no room in memory"


def test_a_model_that_generates_no_text_is_refused(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert.gguf")
    with pytest.raises(QuantmillError) as error:
        speed.main(arguments(tmp_path / "bert.gguf", tmp_path, ["q8_0"]), Log())
    assert str(error.value).startswith("bert.gguf: ")
    assert str(error.value).endswith(" generates no text; leave at_least.tg out for it")


def test_weights_lie_where_llama_cpp_loads_them(tmp_path: Path) -> None:
    """Its own log of loading a file says whether weights are repacked for this processor."""
    path = DATA / "tiny-mtp-Q8_0.gguf"
    header, buffers = read_header(path), set()
    with Timer(0, 1) as timer:
        with timer.weights("f16", Shape(256, 256), 1) as weights:
            assert weights.buffer == "CPU"
        for tensor in speed.weights_of(header):
            shape = pace.shape_of(header, tensor.name, tensor.shape)
            assert shape is not None
            with timer.weights(tensor.type, shape, 1) as weights:
                buffers.add(weights.buffer)
                assert len(weights.seconds(1, seconds=0.0, least=2)) == 2
    loaded = {name.removesuffix("_Mapped") for name in loaded_in(path, tmp_path)}
    assert buffers - {"CPU"} == loaded - {"CPU"}


def loaded_in(path: Path, folder: Path) -> set[str]:
    """The buffers of the weights of a file, by llama.cpp's log of loading it."""
    from quantmill.engine.llama import listener
    from quantmill.measure.score import loaded

    copy = shutil.copy(path, folder)
    listener.buffers.clear()
    with loaded(Path(copy), context=8, batch=8, threads=1):
        return set(placement.buffers(listener.buffers))


def test_a_draft_head_takes_no_time(tmp_path: Path) -> None:
    header = read_header(DATA / "tiny-mtp-Q8_0.gguf")
    drafts = [t for t in header.tensors if t.name.startswith(f"blk.{header.evaluated}.") and len(t.shape) > 1]
    assert drafts and all(pace.shape_of(header, t.name, t.shape) is None for t in drafts)


def test_fallbacks_are_measured_in_place_of_what_does_not_fit() -> None:
    header: Header = read_header(DATA / "tiny-llama.gguf")
    weights: Any = [t._replace(shape=(96, 64)) for t in speed.weights_of(header)[:1]]
    kinds = {kind for _, kind in speed.to_measure(header, weights, ["q4_K"])}
    assert "q4_K" not in kinds and "q5_0" in kinds
