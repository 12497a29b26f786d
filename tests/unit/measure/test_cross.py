"""The cross moments: their sums, their units, what they depend on; and of a real model beside its file."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import models
from nodes import random, shown
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.cross import CROSS
from quantmill.measure import moments
from quantmill.measure.cross import Cross, Known, late_and_first, made_by, report_of
from quantmill.measure.outer import Input
from quantmill.measure.shifts import Originals, Shifted, Shifts
from quantmill.progress import Log
from quantmill.store import Store

IDENTITY: dict[str, Any] = {"engine": "e", "model": "m"}
FIRST, LATE = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight"


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def both(pool: Any, columns: int = 32, matrices: int = 1) -> tuple[Originals, Shifts]:
    first, late = Input(FIRST, [FIRST], 32, 1), Input(LATE, [LATE], columns, matrices)
    originals = Originals([first, late])
    return originals, Shifts([late], [first], originals, pool)


@pytest.mark.parametrize("columns", [32, 700])
def test_the_sums_are_of_the_rows_of_either_model(pool: Any, columns: int) -> None:
    originals, shifts = both(pool, columns)
    before, after = random(40, columns, seed=1), random(40, columns, seed=2)
    for seed in range(2):
        before, after = random(40, columns, seed=seed), random(40, columns, seed=9 + seed)
        assert shown(originals, weight=FIRST, rows=random(40, 32))
        assert not shown(originals, weight=LATE, rows=before)  # the last one: the graph ends
        assert shown(shifts, weight=LATE, rows=after, ask=True)
        assert not shown(shifts, weight=LATE, rows=after)
        if seed == 0:
            kept = (before, after)
    befores, afters = (np.concatenate(each) for each in zip(kept, (before, after), strict=True))
    unit = shifts.units()[LATE]
    np.testing.assert_allclose(unit.second.sums[0, 0], afters.T @ afters, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(unit.changes[0, 0], (befores - afters).T @ afters, rtol=1e-4, atol=1e-3)
    assert unit.second.counts.tolist() == [80]


def test_a_token_that_the_router_sends_elsewhere_has_no_counterpart(pool: Any) -> None:
    originals, shifts = both(pool, matrices=3)
    before, after = random(20, 2, 32, seed=1), random(20, 2, 32, seed=2)
    then = np.stack([np.zeros(20), np.ones(20)], axis=1).astype(np.int32)
    now = then.copy()
    now[:5] = [2, 0]  # the first five go to 2 and 0, so that 0 is their second expert now
    shown(originals, weight=LATE, rows=before, chosen=then, matrices=3)
    shown(shifts, weight=LATE, rows=after, chosen=now, matrices=3)
    unit = shifts.units()[LATE]
    assert unit.second.counts.tolist() == [20, 15, 0]
    x, y = before[:, 0], np.concatenate([after[:5, 1], after[5:, 0]])
    np.testing.assert_allclose(unit.changes[0, 0], (x - y).T @ y, rtol=1e-4, atol=1e-4)
    x, y = before[5:, 1], after[5:, 1]
    np.testing.assert_allclose(unit.changes[1, 0], (x - y).T @ y, rtol=1e-4, atol=1e-4)
    assert not unit.changes[2].any()


def test_a_node_gets_the_values_that_the_source_had(pool: Any) -> None:
    originals, shifts = both(pool)
    rows = random(16, 32)
    shown(originals, weight=FIRST, rows=rows, input_name="ffn_norm-0")
    shown(originals, weight=LATE, rows=rows, input_name="swiglu-0")
    replaced = shifts.values("ffn_norm-0")
    assert replaced is not None and (replaced.reshape(16, 32) == rows).all()
    assert shifts.values("swiglu-0") is shifts.values("attn_norm-0") is None
    assert shifts.replaced == {FIRST}


def test_a_pass_goes_on_where_it_was(pool: Any) -> None:
    whole, cut, rest = (both(pool) for _ in range(3))
    for pair, seeds in ((whole, (1, 2)), (cut, (1,))):
        for seed in seeds:
            shown(pair[0], weight=LATE, rows=random(16, 32, seed=seed))
            shown(pair[1], weight=LATE, rows=random(16, 32, seed=7 + seed))
    assert rest[1].resume(None) == 0
    assert rest[1].resume(cut[1].state(1)) == 1
    shown(rest[0], weight=LATE, rows=random(16, 32, seed=2))
    shown(rest[1], weight=LATE, rows=random(16, 32, seed=9))
    ours, theirs = rest[1].units()[LATE], whole[1].units()[LATE]
    assert (ours.changes == theirs.changes).all() and (ours.second.sums == theirs.second.sums).all()
    assert ours.to_bytes() == theirs.to_bytes()


def test_a_unit_is_read_as_it_was_written() -> None:
    unit = Shifted.zeros(Input(LATE, [LATE], 64, 2))
    for matrix in range(2):
        rows = random(80, 64, seed=matrix)
        unit.second.sums[matrix, 0], unit.second.counts[matrix] = rows.T @ rows, 80
        unit.changes[matrix, 0] = random(64, 64, seed=matrix)
    read = Shifted.from_bytes(unit.to_bytes())
    assert (read.changes == unit.changes).all() and (read.second.sums == unit.second.sums).all()
    assert read.finite
    unit.changes[1, 0, 3, 3] = np.nan
    assert not unit.finite


# --- of a model -----------------------------------------------------------------------------------


CHUNKS = np.random.default_rng(3).integers(0, 32, (4, 32)).astype(np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_llama(tmp_path_factory.mktemp("model") / "m.gguf", width=64, loads=True, tied=False)


def changed(model: Path, path: Path, *names: str) -> Path:
    """A copy of the model as a file of q8_0 that holds its values exactly; those named are a quarter off."""
    header, reader = ggufio.read_header(model), gguf.GGUFReader(model)
    data = {t.name: np.array(t.data) for t in reader.tensors}
    raw = bytearray(model.read_bytes())
    for tensor in header.tensors:
        if tensor.name in names:
            values = np.asarray(data[tensor.name] * data[tensor.name].dtype.type(1.25))
            raw[tensor.offset : tensor.offset + tensor.bytes] = values.tobytes()
    path.write_bytes(raw)
    return path


def opened(
    model: Path, quantized: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int = 2
) -> Cross:
    # the file stands for a quantized one: what is tested is what the engine computes of it
    monkeypatch.setattr("quantmill.measure.cross.FED_BACK", frozenset({"f16", "f32"}))
    return Cross(
        model,
        ggufio.read_header(quantized),
        CHUNKS,
        moments.scan(model, CHUNKS, threads),
        identity=IDENTITY,
        store=Store(folder),
        threads=threads,
        log=Log(folder / "log"),
    )


def test_the_last_weights_of_either_half_are_measured(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross = opened(model, model, tmp_path, monkeypatch)
    layers = range(len(cross.inputs) // 2)
    expected = [f"blk.{layer}.{role}.weight" for layer in layers for role in ("attn_output", "ffn_down")]
    assert [one.name for one in cross.inputs] == expected and len(layers) >= 2
    every = moments.scan(model, CHUNKS, 1)
    _, first = late_and_first(every, ggufio.read_header(model))
    assert [one.name for one in first[:2]] == ["blk.0.attn_q.weight", "blk.0.ffn_gate.weight"]
    assert all(one.name.startswith("blk.") for one in first)


def test_the_source_itself_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross = opened(model, model, tmp_path / "cross", monkeypatch)
    cross.measure()
    measured = moments.Moments(
        model,
        CHUNKS,
        moments.scan(model, CHUNKS, 2),
        identity=IDENTITY,
        store=Store(tmp_path / "moments"),
        threads=2,
        log=Log(tmp_path / "log"),
    )
    for one in cross.inputs:
        unit = cross.of(one.name)
        assert not unit.changes.any()
        assert (unit.second.sums == measured.of(one.name).sums).all()


@pytest.mark.parametrize(
    ("name", "role"), [("blk.0.attn_v.weight", "attn_output"), ("blk.0.ffn_up.weight", "ffn_down")]
)
def test_only_the_own_half_of_a_layer_changes_an_input(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, role: str
) -> None:
    cross = opened(model, changed(model, tmp_path / "q.gguf", name), tmp_path, monkeypatch)
    cross.measure()
    moved = {one.name for one in cross.inputs if cross.of(one.name).changes.any()}
    assert moved == {f"blk.0.{role}.weight"}
    # whatever that half ends with is of the same input's size: x̃ = 1.25 x
    unit = cross.of(f"blk.0.{role}.weight")
    most = float(np.abs(unit.changes).max())  # values are cached as f16
    np.testing.assert_allclose(unit.changes, -0.2 * unit.second.sums, atol=2e-3 * most)
    again = opened(model, changed(model, tmp_path / "q.gguf", name), tmp_path / "one", monkeypatch, 1)
    np.testing.assert_allclose(again.of(f"blk.0.{role}.weight").changes, unit.changes, atol=1e-3 * most)


def test_the_weights_that_end_a_half_do_not_matter_nor_do_other_layers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {
        name: [
            opened(model, path, tmp_path, monkeypatch).key(f"blk.{layer}.ffn_down.weight") for layer in (0, 1)
        ]
        for name, path in {
            "as it is": model,
            "the last weight": changed(model, tmp_path / "a.gguf", "blk.0.ffn_down.weight"),
            "the first": changed(model, tmp_path / "b.gguf", "blk.0.ffn_up.weight"),
        }.items()
    }
    assert keys["as it is"] == keys["the last weight"]
    assert keys["as it is"][0] != keys["the first"][0] and keys["as it is"][1] == keys["the first"][1]
    assert -1 not in made_by(ggufio.read_header(model))


def test_what_the_store_lost_is_said_with_the_cure(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cross = opened(model, model, tmp_path, monkeypatch)
    cross.measure()
    facts: Any = {"sha256": "s"}
    report = tmp_path / "cross.json"
    CROSS.write(report, report_of(cross, facts))
    known = Known(report, Store(tmp_path))
    assert LATE in known and FIRST not in known and known.key(LATE) == cross.key(LATE)
    assert known.of(LATE).to_bytes() == cross.of(LATE).to_bytes()
    for unit in (tmp_path / "units").rglob("*"):
        if unit.is_file():
            unit.unlink()
    with pytest.raises(QuantmillError) as refused:
        known.of(LATE)
    assert str(refused.value) == (
        f"{report}: the store has lost its cross moments; delete it to have it made again, and give the "
        "store more room"
    )


def test_a_graph_that_cannot_be_given_the_sources_values_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantmill.engine.graph.MatMul.input_name", "no such node")
    cross = opened(model, model, tmp_path, monkeypatch)
    with pytest.raises(QuantmillError, match=r"does not show what computes the input of blk\.0\.attn_q"):
        cross.measure()
