"""The second moments: their sums, their units, what is refused; and a run of a real model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from nodes import random, shown
from quantmill import machine
from quantmill.errors import QuantmillError
from quantmill.formats import ggufio
from quantmill.formats.moments import Moments as Report
from quantmill.measure import moments, outer, passes, saved
from quantmill.measure.outer import Input, Outer, Scan, Second, blocks_of
from quantmill.progress import Log
from quantmill.store import Store

IDENTITY: dict[str, Any] = {"engine": "e", "model": "m"}


@pytest.fixture
def pool() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("columns", [32, 700, 1100])
def test_the_sums_are_those_of_all_rows(pool: Any, columns: int) -> None:
    observer = Outer([Input("blk.0.x", ["blk.0.x"], columns, 1)], pool)
    batches = [random(40, columns, seed=seed) for seed in range(3)]
    for rows in batches:
        assert shown(observer, weight="blk.0.x", rows=rows, ask=True)
        shown(observer, weight="blk.0.x", rows=rows)
    second = observer.units()["blk.0.x"]
    every = np.concatenate(batches)
    np.testing.assert_allclose(second.sums[0, 0], every.T @ every, rtol=1e-4, atol=1e-3)
    assert (second.sums[0, 0] == second.sums[0, 0].T).all()
    assert second.counts.tolist() == [120]


def test_a_row_counts_for_the_expert_that_it_is_sent_to(pool: Any) -> None:
    observer = Outer([Input("x", ["x"], 32, 3)], pool)
    rows, chosen = random(20, 1, 32), np.stack([np.arange(20) % 2, np.full(20, 2)], axis=1).astype(np.int32)
    shown(observer, weight="x", rows=rows, chosen=chosen, matrices=3)
    second = observer.units()["x"]
    assert second.counts.tolist() == [10, 10, 20]
    own = rows[::2, 0]
    np.testing.assert_allclose(second.sums[0, 0], own.T @ own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(second.sums[:2, 0].sum(axis=0), second.sums[2, 0], rtol=1e-4, atol=1e-4)


def test_a_graph_ends_where_the_last_input_is(pool: Any) -> None:
    observer = Outer([Input(name, [name], 32, 1) for name in ("blk.0.a", "blk.0.b")], pool)
    assert shown(observer, weight="blk.0.a", rows=random(16, 32))
    assert not shown(observer, weight="blk.0.b", rows=random(16, 32))
    assert not shown(observer, weight="blk.0.c", rows=random(16, 32), ask=True)


def test_inputs_are_counted_once_for_all_weights_that_share_them() -> None:
    scan, shared, own = Scan(), random(16, 32), random(16, 64)
    for name, rows in (("blk.0.q", shared), ("blk.0.k", shared), ("blk.0.down", own), ("output.weight", own)):
        assert not shown(scan, weight=name, rows=rows, ask=True)
    shown(scan, weight="blk.0.few", rows=random(15, 32), ask=True)
    shown(scan, weight="rope", rows=random(16, 32), ask=True)
    assert list(scan.inputs.values()) == [
        Input("blk.0.q", ["blk.0.q", "blk.0.k"], 32, 1),
        Input("blk.0.down", ["blk.0.down", "output.weight"], 64, 1),
    ]


@pytest.mark.parametrize(
    ("columns", "blocks"), [(576, 1), (8192, 1), (17408, 4), (9000, 1), (16384, 2), (14336, 2)]
)
def test_wide_inputs_are_kept_in_blocks(columns: int, blocks: int) -> None:
    assert blocks_of(columns) == blocks
    assert columns % blocks == 0
    assert blocks == 1 or columns // blocks % 256 == 0


def test_a_unit_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer, "WIDEST", 256)
    second = Second.zeros(2, 512)
    assert second.sums.shape == (2, 2, 256, 256)
    for block in second.sums.reshape(-1, 256, 256):
        rows = random(300, 256)
        block[:] = rows.T @ rows
    second.counts[:] = 7, 9
    data = second.to_bytes()
    assert len(data) < 4 * 4 * 257 * 256 // 2 + 64
    read = Second.from_bytes(data)
    assert (read.sums == second.sums).all()
    assert (read.counts == second.counts).all()


def test_blocks_leave_out_what_lies_between_them(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outer, "WIDEST", 256)
    observer, rows = Outer([Input("blk.0.x", ["blk.0.x"], 512, 1)], pool), random(64, 512)
    shown(observer, weight="blk.0.x", rows=rows)
    second = observer.units()["blk.0.x"]
    for block, own in enumerate((rows[:, :256], rows[:, 256:])):
        np.testing.assert_allclose(second.sums[0, block], own.T @ own, rtol=1e-4, atol=1e-4)


def test_a_pass_goes_on_where_it_was(pool: Any) -> None:
    inputs = [Input(name, [name], 32, 1) for name in ("blk.0.a", "blk.0.b")]
    first, whole, second = (Outer(inputs, pool) for _ in range(3))
    for name in ("blk.0.a", "blk.0.b"):
        shown(first, weight=name, rows=random(16, 32, seed=1))
    assert second.resume(None) == 0
    assert second.resume(first.state(5)) == 5
    for observer, seeds in ((whole, (1, 2)), (second, (2,))):
        for seed in seeds:
            for name in ("blk.0.a", "blk.0.b"):
                shown(observer, weight=name, rows=random(16, 32, seed=seed))
    for name in ("blk.0.a", "blk.0.b"):
        assert (whole.units()[name].sums == second.units()[name].sums).all()
        assert whole.sums[name].counts == second.sums[name].counts


def test_an_expert_with_few_tokens_leans_on_the_others() -> None:
    second = Second.zeros(3, 32)
    for matrix, tokens in enumerate((10_000, 8, 0)):
        rows = random(tokens, 32, seed=matrix) * (matrix + 1)
        second.sums[matrix, 0], second.counts[matrix] = rows.T @ rows, tokens
    many, few, none = second.mean()
    pooled = second.sums.sum(axis=0) / second.counts.sum()
    np.testing.assert_allclose(many, second.sums[0] / 10_000, atol=0.05)
    np.testing.assert_allclose(none, pooled, rtol=1e-5)
    assert np.abs(few - pooled).max() > 0
    (alone,) = Second(second.sums[:1], second.counts[:1]).mean()
    np.testing.assert_allclose(alone, second.sums[0] / 10_000, rtol=1e-5)


# --- of a model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write_llama(tmp_path_factory.mktemp("model") / "m.gguf", width=64, loads=True, tied=False)


CHUNKS = np.random.default_rng(3).integers(0, 32, (4, 32)).astype(np.int32)


def opened(model: Path, folder: Path, threads: int = 2, chunks: np.ndarray = CHUNKS) -> moments.Moments:
    return moments.Moments(
        model,
        chunks,
        moments.scan(model, chunks, threads),
        identity=IDENTITY,
        store=Store(folder),
        threads=threads,
        log=Log(folder / "log"),
    )


def test_the_moments_of_a_model(model: Path, tmp_path: Path) -> None:
    made = opened(model, tmp_path)
    made.measure()
    assert [(one.name, one.columns) for one in made.inputs[:4]] == [
        ("blk.0.attn_q.weight", 64),
        ("blk.0.attn_output.weight", 64),
        ("blk.0.ffn_gate.weight", 64),
        ("blk.0.ffn_down.weight", 128),
    ]
    assert made.inputs[-1].weights == ["output.weight"]
    assert {"blk.1.attn_k.weight", "blk.1.ffn_up.weight"} <= {w for one in made.inputs for w in one.weights}
    assert "token_embd.weight" not in made
    second = made.of("blk.1.attn_k.weight")
    assert second.counts.tolist() == [CHUNKS.size]
    assert np.linalg.eigvalsh(second.sums[0, 0].astype(np.float64)).min() > -1e-2
    # the same whatever the threads, and in passes as in one
    again = opened(model, tmp_path / "again", threads=1)
    assert (again.of("blk.1.attn_k.weight").sums == second.sums).all()


def test_the_diagonal_is_the_importance_matrix(model: Path, tmp_path: Path) -> None:
    from quantmill.measure.imatrix import measure

    shard = measure(
        model, CHUNKS, identity=IDENTITY, threads=1, store=Store(tmp_path / "i"), log=Log(tmp_path / "log")
    )
    second = opened(model, tmp_path).of("blk.1.ffn_down.weight")
    importance = shard.sums[shard.leader["blk.1.ffn_down.weight"]].in_sum2[0]
    np.testing.assert_allclose(np.diagonal(second.sums[0, 0]), importance, rtol=1e-4)


def test_few_inputs_a_pass_where_memory_is_short(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = opened(model, tmp_path / "whole")
    whole.measure()
    room = int(1.1 * 4 * 128**2 / 0.6)
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(room, room, "this machine"))
    made = opened(model, tmp_path / "passes")
    made.measure()
    for one in made.inputs:
        assert (made.of(one.name).sums == whole.of(one.name).sums).all()
    lines = (tmp_path / "passes" / "log").read_text("utf-8")
    assert lines.count("moments: 4 of 4 chunks") > 2


def test_one_input_that_does_not_fit_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened(model, tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(10_000, 10_000, "its cgroup"))
    expected = (
        "blk.0.attn_q.weight: the second moments of its input need 16,384 bytes of memory, and its cgroup "
        "has 10,000 left, of which 6,000 are for them; use a larger machine, or `rounding: nearest`"
    )
    with pytest.raises(QuantmillError) as refused:
        made.measure()
    assert str(refused.value) == expected


def test_what_the_store_lost_is_measured_again(model: Path, tmp_path: Path) -> None:
    made = opened(model, tmp_path)
    first = made.of("blk.0.ffn_up.weight").sums
    for unit in (tmp_path / "units").rglob("*"):
        if unit.is_file():
            unit.unlink()
    assert (made.of("blk.0.ffn_up.weight").sums == first).all()


def test_a_killed_run_goes_on_in_its_pass(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved, "SAVE_EVERY", -1.0)
    evaluate, seen = passes.evaluate, []

    def dies(chunk: np.ndarray, model: Any) -> None:
        seen.append(chunk)
        if len(seen) == 3:
            raise KeyboardInterrupt
        evaluate(chunk, model)

    monkeypatch.setattr(moments, "evaluate", dies)
    killed = opened(model, tmp_path)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        killed.measure()
    killed.measure()
    assert len(seen) == 5  # two, the one that was cut off, and the two that were left
    monkeypatch.undo()
    whole = opened(model, tmp_path / "whole")
    for one in whole.inputs:
        assert (whole.of(one.name).sums == killed.of(one.name).sums).all()


def report(made: moments.Moments, model: Path) -> Report:
    header = ggufio.read_header(model)
    config: Any = {"corpus": "c", "chunks": len(CHUNKS), "context": CHUNKS.shape[1]}
    return moments.report_of(made, header, config, IDENTITY)


def test_the_report_lists_them(model: Path, tmp_path: Path) -> None:
    made = opened(model, tmp_path)
    written = report(made, model)
    assert written["missing"] == []
    assert written["inputs"][3]["tokens"] == [128]
    assert written["warnings"] == []
    header = ggufio.read_header(model)
    assert moments.listed(written, tmp_path, CHUNKS, header, IDENTITY) == made.inputs


def test_too_few_tokens_are_warned_of(model: Path, tmp_path: Path) -> None:
    written = report(opened(model, tmp_path, chunks=CHUNKS[:1]), model)
    (warning,) = written["warnings"]
    assert warning.startswith("9 of 9 inputs (each expert's counted) saw fewer tokens than they have columns")


def test_moments_of_another_model_or_text_are_refused(model: Path, tmp_path: Path) -> None:
    written = report(opened(model, tmp_path), model)
    where = Path("moments.json")
    other = ggufio.read_header(models.write_llama(tmp_path / "o.gguf", width=96))
    with pytest.raises(QuantmillError, match=r"^moments\.json: .* they are of another model; delete it"):
        moments.listed(written, where, CHUNKS, other, IDENTITY)
    header = ggufio.read_header(model)
    for chunks, identity in ((CHUNKS[::-1], IDENTITY), (CHUNKS, {**IDENTITY, "model": "n"})):
        with pytest.raises(QuantmillError, match=r"^moments\.json: is of another corpus, of another model"):
            moments.listed(written, where, chunks, header, identity)


def test_activations_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = models.write_llama(tmp_path / "m.gguf", width=64, loads=True)
    data = bytearray(path.read_bytes())
    tensor = next(t for t in ggufio.read_header(path).tensors if t.name == "blk.0.ffn_norm.weight")
    data[tensor.offset : tensor.offset + 4] = np.array([np.nan], "<f4").tobytes()
    path.write_bytes(data)
    with pytest.raises(QuantmillError, match=r"non-finite activations in blk\.0\.ffn_gate\.weight"):
        opened(path, tmp_path).measure()
