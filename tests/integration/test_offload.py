"""Stages with layers on a device whose buffers are not host memory: ggml's RPC server on loopback.

They agree with the CPU. A server that dies, devices and layers that are not there.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rpc
from bench import CONTEXT, LLAMA, MOE, Bench
from commands import command
from quantmill import spec
from quantmill.formats.imatrix import read_gguf
from quantmill.formats.sensitivity import read_sensitivity

STAGES = ("imatrix", "divergence", "perplexity", "speed", "sensitivity", "humaneval")


@pytest.fixture(scope="module")
def server() -> Iterator[rpc.Server]:
    with rpc.server() as running:
        yield running


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What a stage printed beside its progress."""
    return [line for line in done.stderr.splitlines() if not re.match("(imatrix|perplexity): [0-9]", line)]


@pytest.mark.parametrize("model", [LLAMA, MOE])
@pytest.mark.parametrize("where", ["all", "half", "experts"])
def test_stages_agree_with_the_cpu(tmp_path: Path, server: rpc.Server, model: Path, where: str) -> None:
    settings: dict[str, Any] = {"rpc": [server.endpoint]}
    if where == "half":
        settings["gpu_layers"] = 2
    if where == "experts":
        settings |= {"gpu_layers": "auto", "tensors": {r"ffn_(up|gate|down)": "CPU"}, "batch": 512}
    stages = STAGES if where == "half" and model == LLAMA else STAGES[:3]
    here, there = Bench(tmp_path / "cpu", model), Bench(tmp_path / "rpc", model, **settings)
    for stage in stages:
        ours, theirs = here.measure(stage), there.measure(stage)
        assert "devices" not in ours
        if stage != "sensitivity":
            (place,) = theirs["devices"]
            (device,) = place["devices"]
            assert (device["device"], device["description"]) == ("RPC0", server.endpoint)
            assert place["layers"] == (2 if where == "half" else place["of"])
            assert min(device["weights"], device["cache"], device["compute"]) > 0
        match stage:
            case "imatrix":
                one, other = (read_gguf(bench.folder / "i.gguf").entries for bench in (here, there))
                assert one.keys() == other.keys()
                for name in one:
                    np.testing.assert_allclose(other[name].in_sum2, one[name].in_sum2, rtol=1e-4, atol=1e-6)
                    np.testing.assert_array_equal(other[name].counts, one[name].counts)
            case "perplexity":
                assert theirs["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-3)
            case "divergence":
                assert (theirs["kld"]["max"], theirs["kld"]["min"]) == (0, 0)
                assert theirs["cpu"]["chunks"] == 1 and 0 <= theirs["cpu"]["mean"] < 1e-6
            case "speed":
                assert theirs["generate"]["mean"] > 0
            case "sensitivity":
                rows, others = (read_sensitivity(bench.folder / "s.tsv") for bench in (here, there))
                assert [row.kld for row in others] == pytest.approx([row.kld for row in rows], rel=1e-3)
            case _:
                assert theirs["generated_tokens"] == ours["generated_tokens"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"gpu_layers": 9},
            "error: offload, tiny-llama.gguf: gpu_layers is 9, the model has 3 with its output; give fewer, "
            "or `all`",
        ),
        (
            {"devices": ["CUDA7"]},
            "error: offload.devices: no device CUDA7 is here; there are RPC0 ({endpoint})",
        ),
        (
            {"tensors": {"no_such": "CPU"}},
            "error: offload.tensors, tiny-llama.gguf: no_such matches no tensor of the model; its tensors "
            "are named like output_norm.weight",
        ),
        (
            {"tensors": {"ffn": "CUDA0"}},
            "error: offload.tensors: no device CUDA0 is here; there are CPU and RPC0 ({endpoint})",
        ),
        (
            {"tensor_split": [1.0, 2.0]},
            "error: offload: tensor_split has 2 shares for 1 devices; the devices are RPC0 ({endpoint})",
        ),
    ],
)
def test_what_is_not_there_is_refused(
    tmp_path: Path, server: rpc.Server, settings: dict[str, Any], line: str
) -> None:
    bench = Bench(tmp_path, LLAMA, rpc=[server.endpoint], **settings)
    done = subprocess.run(
        bench.command("imatrix", "i.json"), capture_output=True, text=True, env=bench.environment
    )
    assert (done.returncode, errors(done)) == (1, [line.format(endpoint=server.endpoint)])
    assert not (tmp_path / "i.json").exists()


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"gpu_layers": 2},
            "error: offload: gpu_layers is 2, and llama.cpp sees no GPU here; build it for one "
            "(CMAKE_ARGS=-DGGML_CUDA=ON make -B env), or leave gpu_layers out",
        ),
        (
            {"rpc": ["127.0.0.1:1"]},
            "error: 127.0.0.1:1: no RPC server answers (Connection refused); start `rpc-server` there, or "
            "leave it out of offload.rpc",
        ),
    ],
)
def test_without_a_device_it_is_refused(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    bench = Bench(tmp_path, LLAMA, **settings)
    done = subprocess.run(
        bench.command("perplexity", "p.json"), capture_output=True, text=True, env=bench.environment
    )
    assert (done.returncode, errors(done)) == (1, [line])


def test_the_check_of_the_source_refuses_what_its_header_lacks(tmp_path: Path) -> None:
    """Before any work, and where there is no GPU."""
    bench = Bench(tmp_path, LLAMA, tensors={"no_such": "CPU"})
    text = spec.make("check.source", {"model": "m"}, {"model": "s"})
    words = command("check.source", text, model=LLAMA, name="m", out=tmp_path / "check.json")
    done = subprocess.run(words, capture_output=True, text=True, env=bench.environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: offload.tensors, tiny-llama.gguf: no_such matches no tensor")
    assert not (tmp_path / "check.json").exists()


def test_a_device_that_vanishes_costs_no_unit(tmp_path: Path) -> None:
    chunks = 40
    with rpc.server() as first:
        bench = Bench(tmp_path, LLAMA, chunks, rpc=[first.endpoint])
        words = bench.command("perplexity", "p.json")
        words[2] = words[2].removeprefix("quantmill.")
        watched = [*words[:1], "-m", "quantmill", *words[2:], "--log", str(tmp_path / "log")]
        running = subprocess.Popen(watched, stderr=subprocess.PIPE, text=True, env=bench.environment)
        until = time.monotonic() + 60
        while len(list((tmp_path / "store").glob("units/*/[!.]*"))) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        first.process.send_signal(signal.SIGKILL)
        _, errors = running.communicate(timeout=60)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: measure.perplexity: ended by SIGABRT")
    assert "RPC server" in line
    assert errors.count("\n") == 1
    with rpc.server() as second:
        again = Bench(tmp_path, LLAMA, chunks, rpc=[second.endpoint])
        words = [*again.command("perplexity", "p.json"), "--log", str(tmp_path / "log")]
        again.finish(words)
    last = (tmp_path / "log").read_text("utf-8").splitlines()[-1]
    reused = int(last.rpartition("; ")[2].split(" units made, ")[1].split()[0])
    assert reused >= 2, last


def test_a_port_that_is_taken_is_refused(server: rpc.Server) -> None:
    port = server.endpoint.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "quantmill.engine.rpc", "--port", port], capture_output=True, text=True
    )
    assert done.returncode == 1
    line = f"error: 127.0.0.1:{port}: cannot be served; take a free port, and an address of this machine"
    assert done.stderr.splitlines()[-1] == line


def test_several_chunks_at_once_are_the_same(tmp_path: Path) -> None:
    one, several = Bench(tmp_path / "1", MOE, 10), Bench(tmp_path / "4", MOE, 10, batch=4 * CONTEXT)
    ours, theirs = one.measure("imatrix"), several.measure("imatrix")
    assert ours["perplexity"] == theirs["perplexity"]
    first, other = (read_gguf(bench.folder / "i.gguf").entries for bench in (one, several))
    for name in first:
        np.testing.assert_allclose(other[name].in_sum2, first[name].in_sum2, rtol=1e-6)
        np.testing.assert_array_equal(other[name].counts, first[name].counts)
    for stage in ("divergence", "perplexity"):
        ours, theirs = one.measure(stage), several.measure(stage)
        for report in (ours, theirs):
            del report["seconds"]
        assert ours == theirs


def test_two_jobs_take_a_device_each(tmp_path: Path) -> None:
    with rpc.server(1) as first, rpc.server(1) as second:
        endpoints = [first.endpoint, second.endpoint]
        benches = [Bench(tmp_path / str(n), LLAMA, 60, rpc=endpoints, gpus=1) for n in range(2)]
        running = [
            subprocess.Popen(bench.command("imatrix", "i.json"), env=bench.environment) for bench in benches
        ]
        assert [process.wait(120) for process in running] == [0, 0]
        used = []
        for bench in benches:
            (place,) = json.loads((bench.folder / "i.json").read_text("utf-8"))["devices"]
            used += [device["description"] for device in place["devices"]]
        assert sorted(used) == sorted(endpoints)
        bench = Bench(tmp_path / "3", LLAMA, rpc=endpoints, gpus=3)
        done = subprocess.run(
            bench.command("imatrix", "i.json"), capture_output=True, text=True, env=bench.environment
        )
    line = "error: offload: gpus is 3, and there are 2 devices; lower it, or leave it out for all of them"
    assert (done.returncode, errors(done)) == (1, [line])
