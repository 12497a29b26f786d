"""The error table, the choices, the divergence: what the sensitivity is made of."""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models import write_llama
from quantmill import spec
from quantmill.config.bench import POOL
from quantmill.engine import library
from quantmill.engine.ggml import Conversion, type_ids
from quantmill.formats import imatrix
from quantmill.formats.ggufio import read_header
from quantmill.formats.manifest import write_manifest
from quantmill.formats.types import WRITABLE, tensor_bytes
from quantmill.model import manifest
from quantmill.model.digests import Memo
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.sensitivity import errors
from quantmill.sensitivity.candidates import choices
from quantmill.sensitivity.errors import Error, added, error, moments, relative_error, rounding, sample
from quantmill.sensitivity.expand import Expansion
from quantmill.sensitivity.measure import Probed, make_rows, warnings
from quantmill.sensitivity.predict import Prediction
from quantmill.sensitivity.probe import Prober, divergence
from quantmill.sensitivity.session import ProbeResult
from quantmill.store import Store


def source_of(folder: Path, **options) -> Source:
    """A small llama and its manifest."""
    path = write_llama(folder / "m.gguf", **options)
    header = read_header(path)
    digests, _ = manifest.digests(header, Memo([]), 1, Log(folder / "log"))
    rows = manifest.rows(header, digests)
    write_manifest(folder / "manifest.tsv", rows)
    return Source(path, folder / "manifest.tsv")


def matrices(source: Source) -> frozenset[str]:
    return frozenset(name for name, tensor in source.tensors.items() if len(tensor.shape) > 1)


def importance(source: Source, seed: int = 5) -> imatrix.Imatrix:
    """Random importance for every matrix within the blocks."""
    random = np.random.default_rng(seed)
    entries = {
        name: imatrix.Entry(random.random((1, tensor.shape[0]), np.float32), np.ones(1, np.float32))
        for name, tensor in source.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) > 1
    }
    return imatrix.Imatrix("c", 1, 8, entries)


# --- choices -----------------------------------------------------------------


def test_a_type_that_does_not_fit_stands_once_under_what_it_becomes(tmp_path):
    source = source_of(tmp_path, width=576)  # no multiple of 256
    todo, left_out = choices(source, matrices(source), POOL, importance(source))
    types = [choice.type for choice in todo if choice.name == "blk.0.attn_q.weight"]
    assert types == ["iq4_nl", "q4_0", "q5_0", "q5_1", "q8_0"]
    assert left_out == []
    down = [choice.type for choice in todo if choice.name == "blk.0.ffn_down.weight"]  # 1152 columns
    assert down == types


def test_bytes_are_exact_and_tensors_in_the_order_of_a_file(tmp_path):
    source = source_of(tmp_path, width=256, tied=False)
    todo, _ = choices(source, matrices(source), POOL, importance(source))
    assert [choice.row.bytes for choice in todo] == [tensor_bytes(c.type, c.row.shape) for c in todo]
    names = list(dict.fromkeys(choice.name for choice in todo))
    assert names[:3] == ["output.weight", "token_embd.weight", "blk.0.attn_k.weight"]
    for name in names:
        sizes = [choice.row.bytes for choice in todo if choice.name == name]
        assert len(sizes) == len(POOL) and sizes == sorted(sizes)


def test_what_needs_importance_and_has_none_is_left_out(tmp_path):
    source = source_of(tmp_path, width=256, tied=False)
    todo, left_out = choices(source, matrices(source), ["iq2_s", "iq3_xxs", "q4_K"], None)
    assert {c.type for c in todo if c.name.startswith("blk.")} == {"q4_K"}
    # llama.cpp exempts these two, as far as ggml's own quantizers do without
    assert {c.type for c in todo if c.name == "output.weight"} == {"iq2_s", "iq3_xxs", "q4_K"}
    assert len(left_out) == 2 * len([n for n in matrices(source) if n.startswith("blk.")])
    assert left_out[0] == "blk.0.attn_k.weight at iq2_s: it needs importance values, and there are none"


def test_the_units_are_those_of_the_files(tmp_path):
    """The key of a choice's tensor has its importance in it, but where the type takes none."""
    source = source_of(tmp_path, width=256)
    one, _ = choices(source, matrices(source), ["q4_K", "q8_0"], importance(source))
    other, _ = choices(source, matrices(source), ["q4_K", "q8_0"], importance(source, seed=6))
    keys = [[c.task.key("e") for c in todo if c.name == "blk.0.attn_q.weight"] for todo in (one, other)]
    assert keys[0][0] != keys[1][0] and keys[0][1] == keys[1][1]
    assert all(c.importance is not None for c in one if c.name.startswith("blk."))


# --- errors ------------------------------------------------------------------


def test_the_error_is_weighed_and_its_bias_the_stretch():
    random = np.random.default_rng(1)
    values = random.standard_normal((2, 6, 32)).astype(np.float32)
    noise = random.standard_normal(values.shape).astype(np.float32) * np.float32(0.01)
    weights = random.random((2, 32)).astype(np.float32)
    quantized = values * np.float32(1.05) + noise
    result = relative_error(values, quantized, weights, 12)
    w = weights[:, None].astype(np.float64)
    change, x = quantized.astype(np.float64) - values, values.astype(np.float64)
    assert result.error == pytest.approx((w * change**2).sum() / (w * x**2).sum(), rel=1e-6)
    assert result.bias == pytest.approx((w * change * x).sum() / (w * x**2).sum(), rel=1e-6)
    assert result.bias == pytest.approx(0.05, abs=0.002)
    assert result.error > result.bias**2
    assert result.se == 0  # all rows


def test_a_tensor_of_zeros_has_no_error():
    zeros = np.zeros((1, 4, 32), np.float32)
    assert relative_error(zeros, zeros, None, 4) == Error(0.0, 0.0, 0.0)


def test_the_sampling_error_is_that_of_repeated_samples():
    random = np.random.default_rng(2)
    rows = 400
    scale = random.lognormal(0, 0.2, (1, rows, 1))
    values = (random.standard_normal((1, rows, 32)) * scale).astype(np.float32)
    quantized = (values + 0.1 * random.standard_normal(values.shape) * scale**2).astype(np.float32)
    drawn = [np.sort(random.permutation(rows)[:80]) for _ in range(300)]
    samples = [relative_error(values[:, d], quantized[:, d], None, rows) for d in drawn]
    spread = np.std([one.error for one in samples])
    assert np.mean([one.se for one in samples]) == pytest.approx(spread, rel=0.15)
    whole = relative_error(values, quantized, None, rows)
    assert np.mean([one.error for one in samples]) == pytest.approx(whole.error, rel=0.02)


def test_large_tensors_are_sampled_evenly_over_their_matrices(monkeypatch):
    assert sample((256, 512), "x") is None
    monkeypatch.setattr(errors, "SAMPLED_ABOVE", 1000)
    monkeypatch.setattr(errors, "_SAMPLE", 4096)
    picked = sample((256, 64, 4), "x")
    assert picked.shape == (4, 4)
    assert all((picked[m] // 64 == m).all() for m in range(4))
    assert (picked == sample((256, 64, 4), "x")).all()
    assert (picked != sample((256, 64, 4), "y")).any()


@pytest.mark.parametrize("sampled", [False, True])
def test_the_table_is_of_what_quantizing_makes(tmp_path, monkeypatch, sampled):
    source = source_of(tmp_path, width=256)
    todo, _ = choices(source, matrices(source), ["q2_K", "q8_0"], importance(source))
    if sampled:
        monkeypatch.setattr(errors, "SAMPLED_ABOVE", 1 << 14)
        monkeypatch.setattr(errors, "_SAMPLE", 1 << 15)
    store = Store(tmp_path / "store")
    with ThreadPoolExecutor(1) as pool, Quantizer("e", store, 1) as quantizer:
        for choice in (c for c in todo if c.name == "blk.0.ffn_up.weight"):
            data = source.data(choice.name)
            result = error(choice, data, quantizer, pool, 1)
            task, shape = choice.task, choice.row.shape
            quantized = Conversion(pool, 1, data, "f32", task.type, shape, task.importance).result()
            values = Conversion(pool, 1, quantized, task.type, "f32", shape, None).result().view(np.float32)
            x = data.view(np.float32).reshape(shape[::-1]).astype(np.float64)
            change = values.reshape(x.shape) - x
            expected = (choice.importance * change**2).sum() / (choice.importance * x**2).sum()
            assert result.error == pytest.approx(expected, rel=1e-6 if not sampled else 0.1)
            assert abs(result.error - expected) <= 4 * result.se if sampled else result.se == 0
            units = (store.made, store.reused)
            assert error(choice, data, quantizer, pool, 1) == result
            assert (store.made, store.reused) == (units[0], units[1] + 1)


# --- divergence --------------------------------------------------------------


def exact(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL in f64, from the definition."""
    logs = []
    for each in (reference, logits):
        shifted = each.astype(np.float64) - each.max(axis=1, keepdims=True)
        logs.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)


@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 5.0])
def test_the_divergence_is_right_however_small(size):
    random = np.random.default_rng(3)
    reference = (random.standard_normal((70, 3000)) * 4).astype(np.float32)
    logits = (reference + size * random.standard_normal(reference.shape)).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        kld = divergence(reference, logits, pool)
    assert kld == pytest.approx(exact(reference, logits), rel=2e-3, abs=3e-10)
    assert kld.mean() == pytest.approx(exact(reference, logits).mean(), rel=1e-3)


def test_a_model_against_itself_is_exactly_zero():
    reference = np.random.default_rng(4).standard_normal((300, 500)).astype(np.float32)
    with ThreadPoolExecutor(2) as pool:
        assert (divergence(reference, reference.copy(), pool) == 0).all()


def test_what_is_no_number_stays_so():
    reference = np.zeros((2, 10), np.float32)
    broken = np.full((2, 10), np.nan, np.float32)
    with ThreadPoolExecutor(1) as pool:
        assert np.isnan(divergence(reference, broken, pool)).all()


# --- the precision in which a source is probed ---------------------------------


def test_a_quantized_source_is_expanded_and_the_file_is_gone_after(tmp_path):
    source = source_of(tmp_path, width=256, quantized="q4_1")
    with ThreadPoolExecutor(1) as pool:
        expansion = Expansion(source, pool, 1)
        assert expansion.needed
        with expansion.model(tmp_path / "out") as path:
            header = read_header(path)
            kinds = {tensor.type for tensor in header.tensors if len(tensor.shape) > 1}
            assert kinds == {"f16"}
            tensor = next(t for t in header.tensors if t.name == "blk.1.ffn_up.weight")
            data = path.read_bytes()[tensor.offset : tensor.offset + tensor.bytes]
            shape = source.tensors[tensor.name].shape
            args = (source.data(tensor.name), "q4_1", "f32", shape, None)
            values = Conversion(pool, 1, *args).result().view(np.float32)
            assert data == values.astype(np.float16).tobytes()
            assert sum(t.bytes for t in header.tensors) == expansion.bytes()
        assert list((tmp_path / "out").iterdir()) == []


def test_a_source_in_full_precision_is_taken_as_it_is(tmp_path):
    source = source_of(tmp_path, width=256)
    with ThreadPoolExecutor(1) as pool, Expansion(source, pool, 1).model(tmp_path / "out") as path:
        assert path == source.header.path
    assert not (tmp_path / "out").exists()


# --- probes --------------------------------------------------------------------


def test_the_weights_are_put_back_after_a_probe_that_fails(monkeypatch):
    class Weights:
        calls = ()

        def set(self, name, data):
            self.calls += ((name, data),)

    prober = Prober.__new__(Prober)
    prober.weights = weights = Weights()

    def failing():
        raise KeyboardInterrupt

    monkeypatch.setattr(prober, "measure", failing)
    with pytest.raises(KeyboardInterrupt):
        prober.probe("x", "new", "old")
    assert weights.calls == (("x", "new"), ("x", "old"))


# --- what rounding the input adds ----------------------------------------------


def q8(rows: np.ndarray, block: int) -> np.ndarray:
    """As ggml rounds activations: a step a block, its largest magnitude over 127."""
    blocks = rows.reshape(len(rows), -1, block)
    step = np.abs(blocks).max(axis=2, keepdims=True) / 127
    return (np.round(blocks / step) * step).reshape(rows.shape)


def test_the_error_of_rounded_inputs_is_that_of_the_products():
    random = np.random.default_rng(1)
    rows = (random.standard_normal((400, 512)) * np.exp(random.standard_normal(512))).astype(np.float32)
    weights = random.standard_normal((64, 512)).astype(np.float16)
    sums = moments(rows[:100]) + moments(rows[100:])
    with ThreadPoolExecutor(1) as pool:
        rounded = rounding(sums, weights.view(np.uint8).reshape(-1), "f16", (512, 64), "x.weight", pool)
    w = weights.astype(np.float64)
    for value, block in zip(rounded, (32, 256), strict=True):
        lost = ((q8(rows, block) - rows) @ w.T) ** 2
        energy = (w**2 * (rows.astype(np.float64) ** 2).mean(axis=0)).sum()
        assert value == pytest.approx(lost.mean(axis=0).sum() / energy, rel=0.05)
    assert rounded[1] > 1.5 * rounded[0] > 0


def test_rows_that_are_no_whole_blocks_add_nothing():
    sums = moments(np.linspace(-1, 2, 3 * 96, dtype=np.float32).reshape(3, 96))
    assert (sums[0] > 0).all() and (sums[1] >= 0).all() and sums[1].max() > 0 and (sums[2] == 0).all()
    assert (moments(np.zeros((2, 256), np.float32)) == 0).all()


def test_the_length_of_a_types_blocks_is_that_of_its_activations():
    """By ggml's own table: k- and i-quants are multiplied by Q8_K, the others by Q8_0 or Q8_1."""

    class Traits(ctypes.Structure):
        _fields_ = (("from_float", ctypes.c_void_p), ("vec_dot", ctypes.c_void_p), ("kind", ctypes.c_int))

    of_type = library.load("ggml-cpu").ggml_get_type_traits_cpu
    of_type.restype = ctypes.POINTER(Traits)
    names = {number: name for name, number in type_ids().items()}
    for kind in WRITABLE:
        extra = added({"x": [1.0, 2.0]}, SimpleNamespace(name="x", type=kind))
        rounded_to = names[of_type(type_ids()[kind]).contents.kind]
        assert extra == {"q8_K": 2.0, "q8_0": 1.0, "q8_1": 1.0}.get(rounded_to, 0.0), kind
    assert added({}, SimpleNamespace(name="token_embd.weight", type="q6_K")) == 0.0


# --- rows and warnings -------------------------------------------------------


def test_rows_say_how_each_value_was_made(tmp_path):
    source = source_of(tmp_path, width=256, quantized="q8_0")
    todo, _ = choices(source, frozenset({"blk.0.attn_q.weight"}), ["q4_K", "q5_K", "q6_K", "q8_0"], None)
    lost = [Error(0.01 / (i + 1), 0.0, 0.0) for i in range(4)]
    nan = math.nan
    probed = Probed({0: ProbeResult([0.2, 0.4], 1.0, 1.0), 1: ProbeResult([nan, 0.1], 1.0, 1.0)})
    more = np.array([0.1, 0.0, 0.5, 0.0])
    guess = Prediction(np.log([0.5, 9.0, 0.05, 9.0]), np.full(4, 0.04), {"misfit": 1 / 3}, more)
    rows = make_rows(todo, lost, probed, guess)
    assert [(row.type, row.how) for row in rows] == [
        ("q4_K", "measured"),
        ("q6_K", "predicted"),
        ("q8_0", "measured"),
    ]
    assert (rows[0].kld, rows[0].se) == (pytest.approx(0.3), pytest.approx(0.1))
    assert rows[1].kld == pytest.approx(0.05 * math.exp(0.02)) and 0.009 < rows[1].se < 0.012
    assert (rows[2].kld, rows[2].se, rows[2].estimate) == (0.0, 0.0, 0.0)  # the source's own type
    # as much noise as the model's own error: half way, in logs; and what rounded activations add
    assert rows[0].estimate == pytest.approx(1.1 * math.sqrt(0.3 * 0.5))
    assert rows[1].estimate == pytest.approx(1.5 * rows[1].kld)
    texts = warnings(todo, probed, ["x.weight"], ["y at iq2_s: no"], True)
    assert texts[0] == "blk.0.attn_q.weight at q5_K is left out: the model with it gives what is no number"
    assert "x.weight" in texts[2] and "y at iq2_s" in texts[1] and "quantized" in texts[-1]


def test_the_log_takes_a_corrected_total(tmp_path):
    with Log(tmp_path / "log").progress("probes", 5, "probes") as progress:
        progress.expect(7)
        progress.add(7)
    assert "7 of 7 probes" in (tmp_path / "log").read_text("utf-8")


def test_the_stage_has_a_version():
    assert spec.make("sensitivity.measure", {}, {})
