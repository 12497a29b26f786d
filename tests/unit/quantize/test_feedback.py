"""Rounding with error feedback: the cost that it saves, its units, what is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from quantmill.engine.ggml import Conversion
from quantmill.errors import QuantmillError
from quantmill.formats.types import FED_BACK
from quantmill.measure.outer import Second
from quantmill.measure.shifts import Shifted
from quantmill.progress import Log
from quantmill.quantize import nvfp4
from quantmill.quantize.feedback import correction, factor, rounded
from quantmill.quantize.grids import steps_and_offsets
from quantmill.quantize.kernels import Quantizer, Task, task
from quantmill.store import Store

Floats = NDArray[np.float32]
ROWS, COLUMNS = 70, 512


def inputs(tokens: int = 2000, columns: int = COLUMNS, seed: int = 0) -> Floats:
    """Correlated, with columns of very different size."""
    random = np.random.default_rng(seed)
    few = random.standard_normal((tokens, columns // 8)) @ random.standard_normal((columns // 8, columns))
    values = few + 4 * random.standard_normal((tokens, columns))
    return np.asarray(values * np.exp(random.standard_normal(columns)), np.float32)


def second_of(*experts: Floats) -> Second:
    sums = np.stack([(x.T @ x)[None] for x in experts])
    return Second(sums, np.array([len(x) for x in experts], np.int64))


def weights(matrices: int = 1, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((matrices, ROWS, COLUMNS)).astype(np.float32)


class Given:
    """Moments as `measure.moments.Moments` gives them, of one input."""

    def __init__(self, second: Second, key: str = "k") -> None:
        self.second, self._key, self.asked = second, key, 0

    def key(self, weight: str) -> str:
        return self._key

    def of(self, weight: str) -> Second:
        self.asked += 1
        return self.second


def made(
    given: Given | None, item: Task, values: Floats, folder: Path, threads: int = 2, cross: Any = None
) -> bytes:
    store = Store(folder, log=Log(folder / "log"))
    with Quantizer("engine", store, threads, given, cross) as quantizer:  # type: ignore[arg-type]
        return bytes(quantizer.start(item, values.view(np.uint8).reshape(-1))())


def item(type_name: str, moments: str | None = "k", matrices: int = 1) -> Task:
    importance = np.ones((matrices, COLUMNS), np.float32)
    plain = task("blk.0.ffn_up.weight", "sha", "f32", type_name, (COLUMNS, ROWS, matrices), importance)
    return Task(**{**plain.__dict__, "moments": moments})


def read(data: bytes, type_name: str, matrices: int = 1) -> Floats:
    with ThreadPoolExecutor(1) as pool:
        raw, shape = np.frombuffer(data, np.uint8), (COLUMNS, ROWS, matrices)
        values = Conversion(pool, 1, raw, type_name, "f32", shape, None).result()
    return values.view(np.float32).reshape(matrices, ROWS, COLUMNS)


def cost(change: Floats, x: Floats) -> float:
    return float(((change @ x.T) ** 2).sum())


@pytest.mark.parametrize("type_name", sorted(FED_BACK))
def test_the_outputs_change_less_on_other_inputs_too(type_name: str, tmp_path: Path) -> None:
    x, held_out, values = inputs()[:1000], inputs()[1000:], weights()
    given = Given(second_of(x))
    nearest, fed_back = (
        read(made(given, item(type_name, key), values, tmp_path), type_name) for key in (None, "k")
    )
    for text in (x, held_out):
        assert cost(fed_back[0] - values[0], text) < 0.8 * cost(nearest[0] - values[0], text)


def test_a_per_tensor_scale_is_taken_into_account(tmp_path: Path) -> None:
    x, values, plain = inputs(), weights(2), item("nvfp4", matrices=2)
    values[1] *= 3
    flat = values.view(np.uint8).reshape(-1)
    weight = nvfp4.Weight(plain.name, plain.sha256, "f32", plain.shape, lambda: flat)
    task = replace(plain, together=(weight,))
    given = Given(second_of(x, x))
    scale = np.abs(values).max(axis=(1, 2))[:, None, None] / np.float32(6 * 448)
    nearest, fed_back = (
        scale * read(made(given, replace(task, moments=key), values, tmp_path), "nvfp4", 2)
        for key in (None, "k")
    )
    for own, theirs, ours in zip(values, nearest, fed_back, strict=True):
        assert cost(ours - own, x) < 0.8 * cost(theirs - own, x)
    given.second.sums[:] = np.nan
    with pytest.raises(QuantmillError, match=r"^blk\.0\.ffn_up\.weight: its second moments are no"):
        made(given, replace(task, moments="other"), values, tmp_path)


def test_the_bytes_do_not_depend_on_the_threads(tmp_path: Path) -> None:
    given, values = Given(second_of(inputs())), weights()
    one, many = (made(given, item("q4_K"), values, tmp_path / str(n), threads=n) for n in (1, 5))
    assert one == many


def test_each_expert_has_its_own_moments(tmp_path: Path) -> None:
    experts, values = (inputs(seed=1), inputs(seed=2)), weights(2)
    whole = made(Given(second_of(*experts)), item("q4_K", matrices=2), values, tmp_path / "whole")
    parts = np.split(np.frombuffer(whole, np.uint8), 2)
    for expert, own in enumerate(values):
        alone = Second.zeros(1, COLUMNS)
        alone.sums[0], alone.counts[0] = list(second_of(*experts).mean())[expert], 1
        assert made(Given(alone), item("q4_K"), own[None], tmp_path / str(expert)) == bytes(parts[expert])


def test_blocks_of_moments_are_rounded_by_themselves(tmp_path: Path) -> None:
    x, values = inputs(), weights()
    halves = [x[:, :256], x[:, 256:]]
    second = Second(np.stack([half.T @ half for half in halves])[None], np.array([len(x)]))
    whole = read(made(Given(second), item("q3_K"), values, tmp_path), "q3_K")
    nearest = read(made(None, item("q3_K", None), values, tmp_path), "q3_K")
    for half, own in zip(halves, (slice(256), slice(256, 512)), strict=True):
        assert cost((whole - values)[0, :, own], half) < 0.9 * cost((nearest - values)[0, :, own], half)


def test_a_unit_of_the_store_is_keyed_by_the_moments(tmp_path: Path) -> None:
    given, values = Given(second_of(inputs())), weights()
    made(given, item("q4_K"), values, tmp_path)
    assert given.asked == 1
    made(given, item("q4_K"), values, tmp_path)
    assert given.asked == 1  # from the store
    keys = {item("q4_K", moments).key("engine") for moments in (None, "k", "other")}
    assert len(keys) == 3


def test_the_bytes_of_nearest_rounding_are_kept_for_other_files(tmp_path: Path) -> None:
    given, values, store = Given(second_of(inputs())), weights(), Store(tmp_path)
    made(given, item("q4_K"), values, tmp_path)
    assert store.get(item("q4_K", None).key("engine")) is not None


def test_a_dead_column_is_no_obstacle() -> None:
    x = inputs()
    x[:, 5] = 0
    moments = x.T @ x
    assert factor(moments).order[-1] == 5
    few = x[:10]  # singular: fewer tokens than columns
    factor(few.T @ few)
    factor(np.zeros((64, 64), np.float32))  # nothing was ever seen


def test_without_correlations_each_weight_gets_the_nearest_value() -> None:
    x, values = inputs(), weights()[0]
    with ThreadPoolExecutor(1) as pool:
        flat = values.view(np.uint8).reshape(-1)
        plain = Conversion(pool, 1, flat, "f32", "q4_K", (COLUMNS, ROWS), None).result()
    alone = read(bytes(rounded(values, plain, "q4_K", [factor(x.T @ x, shrinkage=1.0)])), "q4_K")[0]
    steps, _ = steps_and_offsets(plain, "q4_K", ROWS)
    distance, step = np.abs(alone - values), steps.T.repeat(32, axis=1)
    within = (distance <= step * 0.5001) | (np.abs(values) >= np.abs(alone))  # or beyond the block's range
    assert within.all()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_moments_that_are_not_finite_are_refused(broken: float) -> None:
    moments = inputs().T @ inputs()
    moments[3, 4] = moments[4, 3] = broken
    with pytest.raises(
        QuantmillError, match="its second moments are no positive definite matrix; measure them"
    ):
        factor(moments)


def test_a_refusal_names_the_tensor(tmp_path: Path) -> None:
    given: Any = Given(second_of(inputs()))
    given.second.sums[:] = np.nan
    with pytest.raises(QuantmillError, match=r"^blk\.0\.ffn_up\.weight: its second moments are no"):
        made(given, item("q4_K"), weights(), tmp_path)


# --- with cross moments ---------------------------------------------------------------------------


class Crossed(Given):
    """Cross moments as `measure.cross.Known` gives them, of the weights named."""

    def __init__(self, before: Floats, after: Floats, *names: str) -> None:
        second = second_of(after)
        super().__init__(second, "crossed")
        self.shifted, self.names = Shifted(second, ((before - after).T @ after)[None, None]), names

    def __contains__(self, weight: str) -> bool:
        return weight in self.names

    def of(self, weight: str) -> Any:
        return self.shifted


def test_the_correction_gives_the_originals_outputs() -> None:
    before = inputs(columns=64)
    after = before + 0.3 * inputs(columns=64, seed=5)
    shifted = Crossed(before, after).shifted
    (second, changes) = next(shifted.mean())
    own = np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)
    corrected = own + own @ correction(second[0], changes[0], ridge=1e-6)
    best = np.linalg.lstsq(after.astype(np.float64), before.astype(np.float64) @ own.T, rcond=None)[0].T
    np.testing.assert_allclose(corrected, best, rtol=1e-2, atol=1e-2)

    def missed(values: Floats) -> float:
        return float(np.square(before @ own.T - after @ values.T).sum())

    assert missed(own + own @ correction(second[0], changes[0])) < 0.8 * missed(own)
    assert not correction(second[0], np.zeros_like(second[0])).any()


def test_cross_moments_that_are_no_numbers_are_refused() -> None:
    second = np.eye(64, dtype=np.float32)
    for moments, changes in (
        (np.full_like(second, np.nan), second),
        (second, np.full_like(second, np.inf)),
        (-second, second),
    ):
        with pytest.raises(
            QuantmillError, match="its cross moments are no positive definite matrix; measure"
        ):
            correction(moments, changes)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("type_name", ["q3_K", "q6_K", "iq3_s", "nvfp4"])
def test_what_is_rounded_in_a_weights_place_costs_less(tmp_path: Path, type_name: str, scaled: bool) -> None:
    if scaled and type_name != "nvfp4":
        pytest.skip("only nvfp4 has per-tensor scales")
    before, values, one = inputs(), weights(), item(type_name)
    after = before + 0.2 * inputs(seed=5)
    scale = np.float32(1)
    if scaled:
        flat = values.view(np.uint8).reshape(-1)
        one = replace(one, together=(nvfp4.Weight(one.name, one.sha256, "f32", one.shape, lambda: flat),))
        scale = np.abs(values).max() / np.float32(6 * 448)
    alone, crossed = (
        scale * read(made(Given(second_of(before)), one, values, tmp_path / str(n), cross=cross), type_name)
        for n, cross in enumerate((None, Crossed(before, after, one.name)))
    )

    def missed(rounded: Floats) -> float:
        return float(np.square(before @ values[0].T - after @ rounded[0].T).sum())

    assert missed(crossed) < 0.9 * missed(alone)


def test_with_cross_moments_the_bytes_do_not_depend_on_the_threads_either(tmp_path: Path) -> None:
    before, values, one = inputs(), weights(), item("q4_K")
    crossed = Crossed(before, before + 0.2 * inputs(seed=5), one.name)
    first, second = (
        made(Given(second_of(before)), one, values, tmp_path / str(n), threads=n, cross=crossed)
        for n in (1, 5)
    )
    assert first == second
