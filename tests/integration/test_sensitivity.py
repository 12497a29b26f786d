"""The stage `sensitivity.measure` as the rules call it: its probes against real files; what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import native
from quantmill import spec
from quantmill.engine.ggml import Conversion
from quantmill.engine.mainline import Evaluator
from quantmill.engine.vocabulary import Vocabulary
from quantmill.errors import QuantmillError
from quantmill.files import writing
from quantmill.formats import ggufio
from quantmill.formats.chunks import Chunk, write_chunks
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import read_sensitivity
from quantmill.progress import Log
from quantmill.quantize.kernels import Quantizer
from quantmill.quantize.write import Source
from quantmill.sensitivity import measure, predict
from quantmill.sensitivity.candidates import Choice, choices
from quantmill.sensitivity.probe import Prober, divergence
from quantmill.sensitivity.session import ProbeResult, Session
from quantmill.shards import Shard
from quantmill.store import Store

DATA = Path(__file__).parents[1] / "data"
LLAMA, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
IMATRIX = {LLAMA: DATA / "llama-imatrix-llama.gguf", MOE: DATA / "llama-imatrix-moe.gguf"}
CHUNKS, CONTEXT = 2, 128


class Bench:
    """A folder with a model's manifest and a tuning corpus, in which its sensitivity is measured."""

    def __init__(self, folder: Path, model: Path = LLAMA) -> None:
        self.folder, self.model = folder, model
        with Vocabulary(model) as vocabulary, writing(folder / "c.parquet") as file:
            tokens = vocabulary.tokenize((DATA / "text.txt").read_text("utf-8"))
            self.chunks = tokens[: CHUNKS * CONTEXT].reshape(CHUNKS, CONTEXT)
            write_chunks(file, [Chunk("text", row, []) for row in self.chunks])
        words = ["--spec", spec.make("model.manifest", {}, {}), "--model", model]
        words += ["--manifest", folder / "m.tsv", "--facts", folder / "m.json"]
        subprocess.run(
            [sys.executable, "-m", "quantmill.model.manifest", *map(str, words)],
            check=True,
            capture_output=True,
        )
        self.source = Source(model, folder / "m.tsv")

    def command(self, types: list[str], minutes: float = 60, imatrix: bool = True) -> list[str]:
        config = {"corpus": "c", "chunks": CHUNKS, "context": CONTEXT, "minutes": minutes, "types": types}
        words = ["--spec", spec.make("sensitivity.measure", config, {"model": "m"}, engine="e")]
        words += ["--model", self.model, "--manifest", self.folder / "m.tsv"]
        words += ["--imatrix", IMATRIX[self.model]] if imatrix else []
        words += ["--corpus", self.folder / "c.parquet", "--out", self.folder / "s.tsv"]
        words += ["--report", self.folder / "s.json", "--store", self.folder / "store", "--threads", 2]
        return [sys.executable, "-m", "quantmill.sensitivity.measure", *map(str, words)]

    def run(self, types: list[str], minutes: float = 60, imatrix: bool = True) -> tuple[list, dict, str]:
        """The rows, the report, and the log."""
        command = self.command(types, minutes, imatrix)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        report = json.loads((self.folder / "s.json").read_text("utf-8"))
        return read_sensitivity(self.folder / "s.tsv"), report, done.stderr

    def choices(self, types: list[str]) -> list[Choice]:
        names = frozenset(name for name in self.source.tensors if self._quantizable(name))
        return choices(self.source, names, types, read_gguf(IMATRIX[self.model]))[0]

    def _quantizable(self, name: str) -> bool:
        return len(self.source.tensors[name].shape) > 1 and self.source.tensors[name].type == "f16"

    def units(self) -> int:
        return sum(not path.name.startswith(".") for path in (self.folder / "store").glob("units/*/*"))


def dequantized(choice: Choice, source: Source, kind: str) -> np.ndarray:
    """The choice's tensor quantized, then in the precision of the source."""
    task, data = choice.task, source.data(choice.name)
    with ThreadPoolExecutor(1) as pool:
        quantized = Conversion(pool, 1, data, task.source_type, task.type, task.shape, task.importance)
        return Conversion(pool, 1, quantized.result(), task.type, kind, task.shape, None).result()


def logits(model: Path, chunks: np.ndarray) -> np.ndarray:
    """Of the scored positions of every chunk, [n, vocabulary], of a file loaded as any file is."""
    parts = []
    with Evaluator(model, context=CONTEXT, batch=CONTEXT, threads=2) as evaluator:
        for chunk in chunks:
            evaluator.clear()
            tokens = chunk.copy()
            if evaluator.bos is not None:
                tokens[0] = evaluator.bos
            evaluator.decode(tokens, 0, CONTEXT // 2)
            parts.append(evaluator.logits(CONTEXT // 2)[: CONTEXT // 2 - 1].copy())
    return np.concatenate(parts)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Every choice of two types measured."""
    bench = Bench(tmp_path_factory.mktemp("llama"))
    bench.run(["iq3_s", "q5_K"])
    return bench


def test_a_probe_is_the_divergence_of_a_file_with_that_tensor(llama: Bench, tmp_path: Path) -> None:
    """Of one that differs from the source in the values of a single tensor, in the source's precision."""
    rows = {(row.name, row.type): row for row in read_sensitivity(llama.folder / "s.tsv")}
    reference = logits(LLAMA, llama.chunks)
    for choice in llama.choices(["iq3_s", "q5_K"])[::9]:
        tensor = llama.source.tensors[choice.name]
        changed = bytearray(LLAMA.read_bytes())
        changed[tensor.offset : tensor.offset + tensor.bytes] = dequantized(
            choice, llama.source, "f16"
        ).tobytes()
        path = tmp_path / "changed.gguf"
        path.write_bytes(changed)
        with ThreadPoolExecutor(2) as pool:
            expected = divergence(reference, logits(path, llama.chunks), pool).mean()
        assert rows[choice.name, choice.type].kld == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_native_type_s_own_divergence_is_near(llama: Bench, tmp_path: Path) -> None:
    """A quantized tensor is multiplied by activations that are quantized too, which a probe leaves out."""
    rows = {(row.name, row.type): row for row in read_sensitivity(llama.folder / "s.tsv")}
    reference = logits(LLAMA, llama.chunks)
    (choice,) = (c for c in llama.choices(["iq3_s"]) if c.name == "blk.1.ffn_down.weight")
    task, header = choice.task, llama.source.header
    with ThreadPoolExecutor(1) as pool:
        data = Conversion(
            pool, 1, llama.source.data(choice.name), "f16", "iq3_s", task.shape, task.importance
        )
        quantized = data.result()
    ids = {"iq3_s": 21}
    listed = [(t.name, ids["iq3_s"] if t.name == choice.name else t.type_id, t.shape) for t in header.tensors]
    with writing(tmp_path / "native.gguf") as file:
        file.write(ggufio.serialize(header.kv, listed))
        for tensor in header.tensors:
            part = quantized if tensor.name == choice.name else llama.source.data(tensor.name)
            file.write(part.tobytes() + bytes(-part.nbytes % ggufio.ALIGNMENT))
    with ThreadPoolExecutor(2) as pool:
        expected = divergence(reference, logits(tmp_path / "native.gguf", llama.chunks), pool).mean()
    row = rows[choice.name, "iq3_s"]
    assert row.kld == pytest.approx(expected, rel=0.1) and row.estimate > row.kld


def test_every_choice_is_measured_and_the_floor_is_zero(llama: Bench) -> None:
    rows, report = (
        read_sensitivity(llama.folder / "s.tsv"),
        json.loads((llama.folder / "s.json").read_text("utf-8")),
    )
    assert {row.how for row in rows} == {"measured"}
    assert len(rows) == report["choices"] == report["probes"] == 2 * report["tensors"] == 32
    assert report["floor"] == {"before": 0.0, "after": 0.0}
    assert report["tokens"] == CHUNKS * (CONTEXT // 2 - 1)
    # what rounded activations add is the larger part where weights cost little
    share = {
        kind: np.median([r.estimate / r.kld for r in rows if r.type == kind and r.role == "ffn_down"])
        for kind in ("iq3_s", "q5_K")
    }
    assert 1 < share["iq3_s"] < share["q5_K"]
    assert (report["expanded"], report["unused"], report["warnings"]) == (None, [], [])
    assert all(row.kld > 0 and row.se > 0 and 0 < row.error < 1 and row.error_se == 0 for row in rows)
    assert {"token_embd.weight", "output.weight"} <= {row.name for row in rows}


def test_a_run_on_the_same_store_probes_nothing_again(llama: Bench) -> None:
    before = (llama.folder / "s.tsv").read_bytes(), (llama.folder / "s.json").read_bytes()
    _, _, log = llama.run(["iq3_s", "q5_K"])
    assert " 0 units made" in log and "loading" not in log
    assert ((llama.folder / "s.tsv").read_bytes(), (llama.folder / "s.json").read_bytes()) == before


def test_a_further_type_takes_only_its_own_probes(llama: Bench) -> None:
    made = llama.units()
    rows, report, _ = llama.run(["iq3_s", "q5_K", "q8_0"])
    assert report["probes"] == 48
    # of each new choice the tensor, its error and its probe; and the floor after them
    assert llama.units() - made == 3 * 16 + 1
    assert len(rows) == 48


def test_a_small_budget_is_respected_and_the_rest_predicted(
    llama: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taking_ten_seconds(method: Any) -> Any:
        return lambda *args: replace(method(*args), seconds=10.0, quantize=0.0)

    for name in ("probe", "noise_floor"):
        monkeypatch.setattr(Session, name, taking_ten_seconds(getattr(Session, name)))
    words = llama.command(["iq3_s", "q5_K"], minutes=1.5)[3:]
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    measure.command.run(measure.parser(), measure.main)
    rows, report = (
        read_sensitivity(llama.folder / "s.tsv"),
        json.loads((llama.folder / "s.json").read_text("utf-8")),
    )
    hows = [row.how for row in rows]
    assert report["probes"] == hows.count("measured") == 9 and report["seconds"] == 90
    assert report["predicted"] == hows.count("predicted") == 32 - 9
    assert all(row.kld > 0 and row.se > 0 for row in rows)
    assert report["fit"]["probes"] == 9
    assert report["warnings"] == ["9 probes for 16 tensors: give it more minutes"]


def test_no_time_for_one_probe_is_refused(llama: Bench) -> None:
    done = subprocess.run(llama.command(["q5_K"], minutes=1e-6), capture_output=True, text=True)
    assert done.returncode == 1
    assert re.search(
        r"error: 1e-06 minutes are too few for one probe, .*raise `sensitivity.minutes`", done.stderr
    )


def test_experts_are_one_tensor(tmp_path: Path) -> None:
    bench = Bench(tmp_path, MOE)
    rows, report, _ = bench.run(["q3_K"])
    experts = [row for row in rows if row.role == "ffn_down_exps"]
    assert experts and all(len(row.shape) == 3 and row.how == "measured" and row.kld > 0 for row in experts)
    assert report["floor"] == {"before": 0.0, "after": 0.0}
    assert {row.name for row in rows if row.how == "measured"} == {row.name for row in rows}


def test_without_an_imatrix(tmp_path: Path) -> None:
    rows, report, _ = Bench(tmp_path).run(["iq3_xxs", "q5_K"], imatrix=False)
    assert {row.type for row in rows if row.layer >= 0} == {"q5_K"}
    assert len(report["left_out"]) == 14 and "14 choices are left out" in report["warnings"][0]


def test_a_quantized_source_is_probed_as_f16(tmp_path: Path) -> None:
    native.quantize(LLAMA, tmp_path / "q8.gguf", 7, None, None)
    IMATRIX[tmp_path / "q8.gguf"] = IMATRIX[LLAMA]
    rows, report, _ = Bench(tmp_path, tmp_path / "q8.gguf").run(["q4_K", "q8_0"])
    assert report["expanded"] == "f16" and "quantized" in report["warnings"][-1]
    unchanged = [row for row in rows if row.type == "q8_0"]
    assert len(unchanged) == 16 and all(
        (row.kld, row.error, row.how) == (0.0, 0.0, "measured") for row in unchanged
    )
    assert all(row.kld > 0 for row in rows if row.type == "q4_K")
    assert not list(tmp_path.glob(".expanded*"))


def test_a_killed_run_loses_one_probe_at_most(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    process = subprocess.Popen(bench.command(["q4_K", "q5_K"]), stderr=subprocess.PIPE, text=True)
    # every choice has its tensor and its error before the first probe
    while bench.units() < 2 + 64 + 5 and process.poll() is None:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert not (tmp_path / "s.tsv").exists()
    finished = bench.units()
    rows, report, log = bench.run(["q4_K", "q5_K"])
    made = int(re.search(r"(\d+) units made", log)[1])
    assert report["probes"] == len(rows) == 32
    assert made == 2 + 64 + 32 + 1 + 1 - finished  # the floor after them, and what is rounded
    once = (tmp_path / "s.tsv").read_bytes()
    other = Bench(_folder(tmp_path / "other"))
    other.run(["q4_K", "q5_K"])
    assert (other.folder / "s.tsv").read_bytes() == once


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- within one process --------------------------------------------------------


def test_weights_are_put_back_exactly(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    todo = [c for c in bench.choices(["q2_K"]) if c.row.role in ("token_embd", "output", "attn_v")]
    names = {choice.name for choice in todo}
    with (
        ThreadPoolExecutor(2) as pool,
        Evaluator(LLAMA, context=CONTEXT, batch=CONTEXT, threads=2, writable=True) as model,
    ):
        weights = model.weights(names | {"no.such.tensor"})
        assert all(name in weights for name in names) and "no.such.tensor" not in weights
        prober = Prober(model, weights, bench.chunks, pool)
        assert (prober.measure().kld == 0).all()
        for choice in todo:
            data, original = dequantized(choice, bench.source, "f16"), bench.source.data(choice.name)
            first = prober.probe(choice.name, data, original)
            assert (first.kld > 0).all()
            assert (prober.measure().kld == 0).all()
            assert (prober.probe(choice.name, data, original).kld == first.kld).all()
            assert 0 < first.forward <= first.seconds
        with pytest.raises(ValueError, match="bytes for"):
            weights.set(todo[0].name, data[:-2])


class _Sessions:
    """Sessions of a bench in this process."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def __call__(self, pool: ThreadPoolExecutor, quantizer: Quantizer, names: set[str]) -> Session:
        identity = {"engine": "e", "model": "m"}
        return Session(
            self.bench.source,
            names,
            self.bench.chunks,
            identity=identity,
            quantizer=quantizer,
            pool=pool,
            folder=self.bench.folder,
            log=Log(self.bench.folder / "log"),
        )


def test_a_probe_that_gives_no_number_is_named_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    todo = [choice for choice in bench.choices(["q4_K"]) if choice.row.layer == 1]
    broken = todo[2]
    errors = [measure.Error(0.01, 0.0, 0.0)] * len(todo)
    table = measure.table_of(todo, errors)
    with (
        ThreadPoolExecutor(2) as pool,
        Quantizer("e", Store(tmp_path / "store"), 2) as quantizer,
        _Sessions(bench)(pool, quantizer, {choice.name for choice in todo}) as session,
    ):
        convert = session.expansion.convert

        def infinite(name: str, data: np.ndarray, kind: str) -> np.ndarray:
            values = convert(name, data, kind)
            if name == broken.name:
                values.view(np.float16)[:] = np.inf
            return values

        monkeypatch.setattr(session.expansion, "convert", infinite)
        probed = measure.probe(session, todo, table, 60.0, Log(tmp_path / "log"))
        after = session.noise_floor([todo[i] for i in probed.results])
    assert after.mean == 0
    assert [i for i, result in probed.results.items() if not result.finite] == [2]
    kld, se = probed.arrays(len(todo))
    rows = measure.make_rows(todo, errors, probed, predict.fit(table, kld, se))
    assert {row.name for row in rows} == {choice.name for choice in todo} - {broken.name}
    texts = measure.warnings(todo, probed, [], [], False)
    assert texts[0] == f"{broken.name} at q4_K is left out: the model with it gives what is no number"


def test_values_too_large_for_the_precision_are_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    (choice,) = (c for c in bench.choices(["q4_K"]) if c.name == "blk.0.attn_q.weight")

    def refuse(*_: Any) -> None:
        raise QuantmillError("quantized data do not validate")

    with (
        ThreadPoolExecutor(2) as pool,
        Quantizer("e", Store(tmp_path / "store"), 2) as quantizer,
        _Sessions(bench)(pool, quantizer, {choice.name}) as session,
    ):
        monkeypatch.setattr(session.expansion, "convert", refuse)
        assert not session.probe(choice).finite


def test_too_little_memory_is_refused_with_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path)
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(available=10_000_000))
    with (
        ThreadPoolExecutor(2) as pool,
        Quantizer("e", Store(tmp_path / "store"), 2) as quantizer,
        _Sessions(bench)(pool, quantizer, {"output.weight"}) as session,
        pytest.raises(QuantmillError) as refused,
    ):
        session.noise_floor()
    assert re.fullmatch(
        r".*tiny-llama\.gguf: needs [\d,]+ bytes of memory to be probed \([\d,]+ for its weights, [\d,]+ for "
        r"its predictions\), and this machine has 10,000,000 left; use a larger machine, or fewer chunks",
        str(refused.value),
    )


def test_a_floor_that_is_not_zero_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path)
    measured = Prober.measure

    def drifted(self: Prober) -> Any:
        probe = measured(self)
        return type(probe)(probe.kld + 1e-9, probe.seconds, probe.forward)

    monkeypatch.setattr(Prober, "measure", drifted)
    with (
        ThreadPoolExecutor(2) as pool,
        Quantizer("e", Store(tmp_path / "store"), 2) as quantizer,
        _Sessions(bench)(pool, quantizer, {"output.weight"}) as session,
    ):
        session.refuse_if_changed()  # nothing was probed here
        with pytest.raises(QuantmillError, match="against itself gives a KLD of 1e-09, not 0"):
            session.noise_floor()
        with pytest.raises(QuantmillError, match="against itself gives a KLD of 1e-09, not 0"):
            session.refuse_if_changed()


class _Fake:
    """A session whose probes take ten seconds each."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.probed = names, []
        self.made: dict[str, ProbeResult] = {}

    def used(self) -> set[str]:
        return self.names

    def noise_floor(self) -> ProbeResult:
        return ProbeResult([0.0], 9.0, 8.0)

    def probe(self, choice: Choice) -> ProbeResult:
        self.probed.append(choice)
        kld = len(self.names) / choice.bits
        return self.made.setdefault(str(choice), ProbeResult([kld, 2 * kld], 9.0, 8.0, 1.0))


def test_minutes_are_honoured_and_unused_tensors_left_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    todo = bench.choices(["q4_K", "q6_K"])
    used = {choice.name for choice in todo} - {"output.weight"}
    table = measure.table_of(todo, [measure.Error(0.01, 0.0, 0.0)] * len(todo))
    session = _Fake(used)
    probed = measure.probe(session, todo, table, 75.0, Log(tmp_path / "log"))
    assert len(probed.results) == len(session.probed) == 7 and probed.seconds == 70
    assert len({choice.name for choice in session.probed}) == 7  # the first round: one a tensor
    everything = measure.probe(_Fake(used), todo, table, 1e9, Log(tmp_path / "log"))
    assert len(everything.results) == 2 * len(used)
    assert "30 of 30 probes" in (tmp_path / "log").read_text("utf-8")


class _Steady(_Fake):
    """One whose first evaluation tells exactly what a probe takes."""

    def noise_floor(self) -> ProbeResult:
        return ProbeResult([0.0], 10.0, 8.0)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("seconds", [95.0, 305.0, 1e9])
def test_shards_make_the_probes_of_one_job(total: int, seconds: float, tmp_path: Path) -> None:
    """Within the first round, within the later ones, and all of them; each shard as if it ran alone."""
    bench = Bench(tmp_path)
    todo = bench.choices(["q3_K", "q4_K", "q6_K"])
    table = measure.table_of(todo, [measure.Error(0.1 / choice.bits, 0.0, 0.0) for choice in todo])
    names, log = {choice.name for choice in todo}, Log(tmp_path / "log")
    alone = _Steady(names)
    expected = measure.probe(alone, todo, table, seconds, log)
    begun = set()
    for number in range(total):
        session = _Steady(names)
        assert measure.probe(session, todo, table, seconds, log, Shard(number, total)) == expected
        assert session.made == alone.made
        begun.add(str(session.probed[0]))
    assert len(begun) == total
