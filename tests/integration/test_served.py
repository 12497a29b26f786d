"""llama-cpp-python's own server, for real."""

import json
import subprocess
import sys
from pathlib import Path

from checkout import ROOT


def test_llama_cpp_pythons_server_is_measured(tmp_path: Path) -> None:
    workloads = [{"name": "a", "prompt": 16, "generate": 12}, {"name": "b", "prompt": 300, "generate": 2}]
    facts, out = tmp_path / "facts.json", tmp_path / "served.json"
    facts.write_text('{"sha256": "f"}', encoding="utf-8")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "quantmill.serve.measure",
            "--model",
            "tests/data/tiny-llama.gguf",
            "--spec",
            json.dumps({"config": {"workloads": workloads, "repetitions": 2}}),
            "--facts",
            facts,
            "--out",
            out,
            "--log",
            tmp_path / "log",
        ],
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    report = json.loads(out.read_text("utf-8"))
    assert report["server"].startswith("llama-cpp-python 0.")
    assert report["model_sha256"] == "f"
    for workload in report["workloads"]:
        for rate in (workload["prefill"], workload["decode"]):
            assert rate["mean"] > 0
            assert len(rate["samples"]) == 2
