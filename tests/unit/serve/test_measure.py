"""Speed behind a server: what is measured, what becomes of servers that misbehave, and that none is left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.offload import Offload
from quantmill.serve import gpu
from quantmill.serve.measure import context_for, rates
from quantmill.serve.server import HOST, Timing, command_of, free_port, serving, version_of

TESTS = Path(__file__).parents[2]
MODEL = TESTS / "data" / "tiny-llama.gguf"
FAKE = TESTS / "fake_server.py"
WORKLOADS = [{"name": "a", "prompt": 32, "generate": 8}, {"name": "b", "prompt": 64, "generate": 4}]

Fake = Callable[[str], Path]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """A server that misbehaves in some way; at the end none runs any more."""
    binary, notes = tmp_path / "llama-server", tmp_path / "notes"
    binary.write_text(f"#!{sys.executable}\n" + FAKE.read_text("utf-8"), encoding="utf-8")
    binary.chmod(0o755)
    notes.mkdir()

    def choose(mode: str) -> Path:
        (notes / "mode").write_text(mode, encoding="utf-8")
        return binary

    yield choose
    if (notes / "pid").exists():
        assert gone(int((notes / "pid").read_text("utf-8")))


def gone(pid: int) -> bool:
    """Whether the process ends within 10 s; it is killed where it does not."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":  # an orphan that nobody in a container reaps
            return True
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    return False


def measure(folder: Path, server: Path, draft: list[int] | None = None, **more: Any) -> subprocess.Popen[str]:
    """The stage, started."""
    drafts = {"draft": draft} if draft else {}
    spec = {"config": {"workloads": WORKLOADS, "repetitions": 2, **drafts}}
    (folder / "facts.json").write_text('{"sha256": "f"}', encoding="utf-8")
    arguments = {
        "spec": json.dumps(spec),
        "model": MODEL,
        "facts": folder / "facts.json",
        "server": server,
        "out": folder / "served.json",
        "log": folder / "log",
    } | more
    command = [sys.executable, "-m", "quantmill.serve.measure"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent / "workflow")}
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


def report_of(folder: Path, server: Path, **more: Any) -> dict[str, Any]:
    """What the stage reports."""
    with measure(folder, server, **more) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    report: dict[str, Any] = json.loads((folder / "served.json").read_text("utf-8"))
    return report


def refused(folder: Path, server: Path, **more: Any) -> str:
    """The one line with which the stage ends."""
    with measure(folder, server, **more) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 1
    assert not (folder / "served.json").exists()
    (line,) = err.splitlines()
    return line.removeprefix("error: ")


def test_what_is_measured(tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "x")
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    report = report_of(tmp_path, fake(""))
    assert report["server"] == "llama-server version: 7 (abc)"
    assert [w["name"] for w in report["workloads"]] == ["a", "b"]
    assert [w["generated_tokens"] for w in report["workloads"]] == [8, 4]
    for workload, configured in zip(report["workloads"], WORKLOADS, strict=True):
        assert 0.9 * configured["prompt"] <= workload["prompt_tokens"] <= configured["prompt"]
        # the server waits 50 ms before its first token, 5 ms before each of the others
        assert 0 < workload["prefill"]["mean"] < configured["prompt"] / 0.05
        # (a piece that reaches this process late shortens the time to the next)
        assert 0 < workload["decode"]["mean"] < 2 / 0.005
        assert len(workload["decode"]["samples"]) == 2
    requests = [
        json.loads(line) for line in (tmp_path / "notes" / "requests").read_text("utf-8").splitlines()
    ]
    assert [a["max_tokens"] for a in requests] == [4, 8, 8, 4, 4]
    assert all(a["ignore_eos"] and a["logit_bias"] == {"0": -1000.0, "2": -1000.0} for a in requests)
    environment = json.loads((tmp_path / "notes" / "environment").read_text("utf-8"))
    assert {"API_KEY", "LLAMA_ARG_CTX_SIZE", "CUDA_VISIBLE_DEVICES"} & set(environment) == {
        "CUDA_VISIBLE_DEVICES"
    }
    # no two prompts begin alike: nothing of one is kept for another
    assert len({a["prompt"].split()[0] for a in requests}) == len(requests)


def test_a_file_that_llama_cpp_cannot_open_has_the_vocabulary_of_another(tmp_path: Path, fake: Fake) -> None:
    """As of ik_llama.cpp's own types: its server opens it, and this process does not."""
    foreign = tmp_path / "of-ik.gguf"
    foreign.write_bytes(b"GGUF of another engine")
    server = fake("")
    with measure(tmp_path, server, model=foreign, vocabulary=MODEL) as running:
        _, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    report = json.loads((tmp_path / "served.json").read_text("utf-8"))
    assert [w["generated_tokens"] for w in report["workloads"]] == [8, 4]
    (tmp_path / "served.json").unlink()
    assert "of-ik.gguf: " in refused(tmp_path, server, model=foreign)


def test_a_server_that_holds_its_text_back_is_no_faster(tmp_path: Path, fake: Fake) -> None:
    first, _ = report_of(tmp_path, fake("withheld"))["workloads"]
    assert 0 < first["prefill"]["mean"] < 32 / 0.05
    # all pieces came at once, and yet took 5 ms each
    assert 0 < first["decode"]["mean"] < 2 / 0.005


MTP = TESTS / "data" / "tiny-mtp-Q8_0.gguf"


def test_drafts_are_measured_beside_none(tmp_path: Path, fake: Fake) -> None:
    report = report_of(tmp_path, fake(""), draft=[1, 3], model=MTP)
    assert [(one["length"], one["accepted"] / one["drafted"]) for one in report["drafts"]] == [
        (1, 1),
        (3, pytest.approx(1 / 3)),
    ]
    assert [w["name"] for one in report["drafts"] for w in one["workloads"]] == ["a", "b", "a", "b"]
    counted = 2 * sum(workload["generate"] for workload in WORKLOADS)  # not the run before them
    assert [one["accepted"] for one in report["drafts"]] == [counted, counted]
    requests = (tmp_path / "notes" / "requests").read_text("utf-8").splitlines()
    assert len(requests) == 15 and requests[:5] == requests[5:10] == requests[10:]


def test_a_file_without_a_head_is_served_without_drafts(tmp_path: Path, fake: Fake) -> None:
    report = report_of(tmp_path, fake(""), draft=[1])
    assert report["drafts"] == [] and len(report["workloads"]) == 2
    assert "drafts" not in report_of(tmp_path, fake(""))


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        (
            "old",
            "the server: ended with code 1 before it answered (its last words: error: invalid argument: "
            "--spec-type)",
        ),
        (
            "uncounted",
            "counts no drafted tokens with drafts of 2; name a newer llama-server, or leave out `draft`",
        ),
    ],
)
def test_a_server_that_cannot_draft_is_one_line(tmp_path: Path, fake: Fake, mode: str, line: str) -> None:
    assert line in refused(tmp_path, fake(mode), draft=[2], model=MTP)


MISBEHAVING = {
    "loading": "the server: no answer on port ",
    "broken": "the server: ended with code 1 before it answered (its last words: no such model)",
    "dying": "the server: ended with code 9 in mid-run (its last words: out of memory)",
    "killed": "the server: ended by SIGKILL in mid-run; start it by hand",
    "silent": "the server: sent nothing for 4 s in mid-run",
    "early": "the server: ended a text before its 4 tokens (finish_reason stop)",
}


@pytest.mark.parametrize("mode", MISBEHAVING)
def test_a_server_that_misbehaves_is_one_line(tmp_path: Path, fake: Fake, mode: str) -> None:
    # long enough for a server that does answer to start on a busy machine
    patience = {"loading": 1, "silent": 4}.get(mode, 60)
    assert refused(tmp_path, fake(mode), patience=patience).startswith(MISBEHAVING[mode])


def test_a_port_in_use(tmp_path: Path, fake: Fake) -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        line = refused(tmp_path, fake(""), port=port)
    assert line == f"{HOST}:{port}: the port is in use; run it again: another one is taken"


def test_no_server_at_all(tmp_path: Path) -> None:
    binary = tmp_path / "llama-server"
    binary.write_text("no program", encoding="utf-8")
    with pytest.raises(QuantmillError, match=r"cannot be run .*; name a llama-server, or leave `server` out"):
        version_of(binary)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_server_is_left_over(tmp_path: Path, fake: Fake, number: signal.Signals) -> None:
    with measure(tmp_path, fake("silent")) as running:
        requests = tmp_path / "notes" / "requests"
        until = time.monotonic() + 30
        while not requests.exists() and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(number)
        running.communicate(timeout=60)
    assert running.returncode != 0
    assert not (tmp_path / "served.json").exists()


def test_a_server_that_does_not_end_is_killed(fake: Fake) -> None:
    port = free_port()
    command = command_of(fake("stubborn"), MODEL, port=port, context=64, threads=1)
    with serving(command, port, patience=30):
        pass


def test_rates() -> None:
    prefill, decode = rates([100, 100], [Timing(0.5, 2.0, 21, 21), Timing(0.25, 4.0, 21, 21)])
    assert prefill["samples"] == [200, 400]
    assert decode == {"mean": 7.5, "sd": pytest.approx(3.5355339), "samples": [10, 5]}


def test_a_workload_that_the_model_was_not_made_for() -> None:
    assert context_for(WORKLOADS, MODEL) == 68 + 64
    assert context_for([{"name": "a", "prompt": 2000, "generate": 48}], MODEL) == 2048
    with pytest.raises(QuantmillError, match="workload b: 2,049 tokens, the model's context is 2,048; "):
        context_for([*WORKLOADS[:1], {"name": "b", "prompt": 2000, "generate": 49}], MODEL)


class Driver:
    """Two GPUs, as pynvml tells of them; a server may take memory of either."""

    NVMLError = type("NVMLError", (Exception,), {})
    NVML_TEMPERATURE_GPU = 0

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.used = [1 << 30, 1 << 30]
        self.nvmlShutdown = lambda: None
        self.nvmlDeviceGetCount = lambda: 2
        self.nvmlDeviceGetHandleByIndex = int
        self.nvmlDeviceGetName = "GPU {}".format
        self.nvmlDeviceGetPowerUsage = lambda device: 100_000 + device
        self.nvmlDeviceGetTemperature = lambda device, _: 40 + device
        self.nvmlDeviceGetMemoryInfo = lambda device: type("Memory", (), {"used": self.used[device]})

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.works:
            raise self.NVMLError("no driver")


def test_the_gpu_that_the_server_takes_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    with gpu.Watch() as watch:
        driver.used[1] = 3 << 30
        with watch.sampling():
            pass
        report = watch.report()
    assert report == {"name": "GPU 1", "power_w": 100.001, "temperature_c": 41, "memory_bytes": 2 << 30}


@pytest.mark.parametrize("works", [True, False])
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver(works))
    with gpu.Watch() as watch:
        with watch.sampling():
            pass
        assert watch.report() is None


def test_a_server_is_spread_as_the_run_wants() -> None:
    wanted = Offload(
        gpu_layers=20,
        devices=["CUDA0", "RPC0"],
        tensor_split=[3.0, 1.0],
        tensors={"exps": "CPU"},
        ubatch=256,
        rpc=["box:50052"],
    )
    words = command_of(Path("llama-server"), MODEL, port=1, context=64, threads=1, offload=wanted)
    spread = dict(zip(words[1::2], words[2::2], strict=True))
    assert {name: spread[name] for name in list(spread)[6:]} == {
        "--n-gpu-layers": "20",
        "--device": "CUDA0,RPC0",
        "--tensor-split": "3.0,1.0",
        "--override-tensor": "exps=CPU",
        "--flash-attn": "auto",
        "--ubatch-size": "256",
        "--rpc": "box:50052",
    }
    python = command_of(None, MODEL, port=1, context=64, threads=1, offload=Offload(gpu_layers=3, batch=1024))
    assert python[python.index("--n_gpu_layers") + 1] == "3"
    assert python[python.index("--n_batch") + 1] == "1024"
    fits = command_of(
        None, MODEL, port=1, context=64, threads=1, offload=Offload(gpu_layers="auto"), fitting=lambda: 7
    )
    assert fits[fits.index("--n_gpu_layers") + 1] == "7"


def test_the_models_own_head_drafts() -> None:
    words = command_of(Path("llama-server"), MTP, port=1, context=64, threads=1, draft=3)
    assert words[-4:] == ["--spec-type", "draft-mtp", "--spec-draft-n-max", "3"]
    assert "--spec-type" not in command_of(Path("llama-server"), MTP, port=1, context=64, threads=1)


def test_what_the_python_server_cannot_do_is_refused() -> None:
    line = (
        "offload.tensors: llama-cpp-python's server knows no tensors; name a llama-server under "
        "bench.served.server"
    )
    with pytest.raises(QuantmillError, match=f"^{re.escape(line)}$"):
        command_of(None, MODEL, port=1, context=64, threads=1, offload=Offload(tensors={"exps": "CPU"}))
