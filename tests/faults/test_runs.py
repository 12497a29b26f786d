"""Real runs that are disturbed give the same bytes: flipped bits, killed stages, another run beside them.

By hand, `KILLS=100 SEED=7 pytest -s tests/faults/test_runs.py -k kills` kills so many stages.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from checkout import Checkout
from quantmill.packs import PLACE

_KLD = {"kld": {"corpus": "held-out", "chunks": 2, "context": 128}}
_LEAN: dict[str, Any] = {"bench": _KLD, "recipes": ["Q4_K_S"], "sensitivity": None}
_KLD_FILE = "results/tiny/bench/{}/kld.json"
_FILE = "tiny-Q4_K_S.gguf"
_KILLS = 2


def build(folder: Path, **changes: Any) -> Checkout:
    """A checkout whose run makes an importance matrix, a file, and its divergence."""
    checkout = Checkout.build(folder)
    checkout.configure(lambda config: config.update(_LEAN | changes))
    return checkout


_TARGETS = ("quants", _KLD_FILE.format("Q4_K_S"))


def outputs(checkout: Checkout) -> dict[str, bytes]:
    """The results by their names, without the seconds that something took."""
    results = checkout.folder / "results"
    made = {}
    for path in checkout.made():
        name = path.relative_to(results).as_posix()
        if "/card/" not in name:
            made[name] = _without_seconds(path.read_bytes()) if path.suffix == ".json" else path.read_bytes()
    return made


def _without_seconds(report: bytes) -> bytes:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: plain(each) for key, each in value.items() if "seconds" not in key and key != "overhead"
            }
        return [plain(each) for each in value] if isinstance(value, list) else value

    return json.dumps(plain(json.loads(report)), sort_keys=True).encode()


def units(checkout: Checkout) -> dict[str, Path]:
    """The units of the store by their keys."""
    folder = checkout.folder / "results" / ".store" / "units"
    return {path.name: path for path in folder.glob("*/*") if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = build(tmp_path_factory.mktemp("undisturbed") / "a")
    checkout.run(*_TARGETS, cores=2)
    return checkout


def flip(path: Path, at: int) -> None:
    """Flip the lowest bit of a byte."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_bit_flipped_in_every_unit(tmp_path: Path) -> None:
    """Of every kind that needs neither a server nor a sandbox."""
    fed = {"name": "fed", "template": "preset", "base": "Q4_K_S", "rounding": "gptq"}
    probes = {"corpus": "tuning", "chunks": 2, "context": 128, "minutes": 60, "types": ["q8_0"]}
    bench = _KLD | {"perplexity": _KLD["kld"]}
    checkout = build(tmp_path / "a", recipes=[fed], sensitivity=probes, bench=bench)
    targets = ["quants", "sensitivities", _KLD_FILE.format("fed"), "results/tiny/bench/fed/perplexity.json"]
    checkout.run(*targets, cores=2)
    expected = outputs(checkout)
    store = checkout.folder / "results" / ".store"
    before, flipped = units(checkout), 0
    for number, path in enumerate(before.values()):
        size = path.stat().st_size
        if size != PLACE.size or number % 2:  # of every second place the bit is in the tensor
            flip(path, random.Random(number).randrange(size))
            flipped += 1
    packs = list((store / "packs").glob("*/data"))
    for path in packs:
        for at in range(0, path.stat().st_size, 1000):
            flip(path, at)
    assert flipped > 20 and packs
    shutil.rmtree(checkout.folder / "results" / "tiny")
    checkout.run(*targets, cores=2)
    assert outputs(checkout) == expected
    assert units(checkout).keys() == before.keys()


def stages() -> list[psutil.Process]:
    """The processes of stages that this process has begun."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(word.startswith("quantmill.") for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def killed(checkout: Checkout, draw: random.Random) -> bool:
    """Begin a run, and kill one of its stages at some time; whether it came to that."""
    run = _begun(checkout, "--rerun-incomplete")
    end = time.monotonic() + draw.uniform(2, 12)
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.05)
    victim = None
    while run.poll() is None and not (victim := next(iter(stages()), None)):
        time.sleep(0.01)
    if victim is not None:
        victim.send_signal(signal.SIGKILL)
    _, errors = run.communicate()
    assert "Traceback" not in errors
    return victim is not None and run.returncode != 0


def _whole(checkout: Checkout) -> dict[str, int]:
    """The inodes of the units that are no places: those are written anew with each file of the tensor."""
    found = {key: path.stat() for key, path in units(checkout).items()}
    return {key: stat.st_ino for key, stat in found.items() if stat.st_size != PLACE.size}


def _begun(checkout: Checkout, *arguments: str, targets: Sequence[str] = _TARGETS) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "snakemake", "--cores=2", *arguments, *targets]
    return subprocess.Popen(
        words, cwd=checkout.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_random_kills(undisturbed: Checkout, tmp_path: Path) -> None:
    checkout, draw = build(tmp_path / "killed"), random.Random(int(os.environ.get("SEED", "1")))
    kills = again = 0
    for _ in range(int(os.environ.get("KILLS", _KILLS))):
        before = _whole(checkout)
        if not killed(checkout, draw):
            shutil.rmtree(checkout.folder / "results", ignore_errors=True)
            continue
        kills += 1
        after = _whole(checkout)
        again += sum(after.get(key) != inode for key, inode in before.items())
        print(f"{kills} kills, {again} units made again, {len(after)} there", flush=True)
    checkout.run("--rerun-incomplete", *_TARGETS, cores=2)
    assert outputs(checkout) == outputs(undisturbed)
    assert not list((checkout.folder / "results").rglob("*.part"))


def test_a_second_run_in_the_same_folder_is_refused(undisturbed: Checkout, tmp_path: Path) -> None:
    checkout = undisturbed.copy(tmp_path / "twice")
    checkout.result(f"gguf/{_FILE}").unlink()
    first = _begun(checkout)
    while first.poll() is None and not (begun := stages()):
        time.sleep(0.02)
    for process in begun:
        process.suspend()
    second = checkout.snakemake(*_TARGETS)
    for process in begun:
        process.resume()
    first.communicate()
    assert first.returncode == 0
    assert second.returncode != 0 and "Traceback" not in second.stderr
    assert "unlock" in second.stderr
    assert outputs(checkout) == outputs(undisturbed)


def test_two_projects_on_one_store_at_once(undisturbed: Checkout, tmp_path: Path) -> None:
    store = {"path": str(tmp_path / "store")}
    projects = [build(tmp_path / name, store=store) for name in ("one", "two")]
    runs = [_begun(project, targets=("quants",)) for project in projects]
    for run in runs:
        _, errors = run.communicate()
        assert run.returncode == 0, errors
    one, two = map(outputs, projects)
    assert one == two and one.items() <= outputs(undisturbed).items()
    assert f"tiny/gguf/{_FILE}" in one
