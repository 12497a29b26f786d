"""A stage that is spread over shards: they do all of its work, and it gives the same."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench import LLAMA, Bench

CHUNKS = 20  # three units, the last of half the size


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Where each stage runs alone."""
    return Bench(tmp_path_factory.mktemp("whole") / "bench", LLAMA, CHUNKS)


def timeless(report: Any) -> Any:
    """A report without what is measured in seconds."""
    if isinstance(report, dict):
        timed = re.compile("seconds|tokens_per_s|overhead")
        return {name: timeless(value) for name, value in report.items() if not timed.search(name)}
    return report


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("stage", ["imatrix", "moments", "divergence", "perplexity", "humaneval"])
def test_shards_do_the_work(stage: str, shards: int, whole: Bench, tmp_path: Path) -> None:
    if not (whole.folder / f"{stage}.json").exists():
        whole.measure(stage)
    spread = Bench(tmp_path / "bench", LLAMA, CHUNKS)
    for number in reversed(range(shards)):
        spread.shard(stage, f"{number}of{shards}")
    said = spread.finish(spread.command(stage, f"{stage}.json"))
    assert re.search(r"\b0 (units made|measured|answers generated)\b", said)
    one, other = (spread.read(f"{stage}.json"), whole.read(f"{stage}.json"))
    assert timeless(one) == timeless(other)
    for file in ("i.gguf", "i.dat") if stage == "imatrix" else ():
        assert (spread.folder / file).read_bytes() == (whole.folder / file).read_bytes()


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_that_run_at_once_probe_every_round(shards: int, probed: Bench, tmp_path: Path) -> None:
    spread = Bench(tmp_path / "bench", LLAMA, CHUNKS)
    words = spread.command("sensitivity", "none.json")
    jobs = [
        subprocess.Popen([*words, "--shard", f"{number}of{shards}"], env=spread.environment)
        for number in range(shards)
    ]
    assert [job.wait() for job in jobs] == [0] * shards
    said = spread.finish(spread.command("sensitivity", "sensitivity.json"))
    assert "; 2 units made" in said  # of the model after the probes: its floor, and what is rounded
    assert (spread.folder / "s.tsv").read_bytes() == (probed.folder / "s.tsv").read_bytes()
    one, other = (spread.read("sensitivity.json"), probed.read("sensitivity.json"))
    assert timeless(one) == timeless(other)
    assert units(spread) == units(probed)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Where the sensitivity is measured by one job."""
    bench = Bench(tmp_path_factory.mktemp("probed") / "bench", LLAMA, CHUNKS)
    bench.measure("sensitivity")
    return bench


def units(bench: Bench) -> set[str]:
    """The keys of a store's units."""
    return {path.name for path in (bench.folder / "store" / "units").glob("*/*")}


def test_a_shard_that_is_none_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", LLAMA)
    with pytest.raises(AssertionError, match="'3of3' is no shard: 0of4 to 3of4 are those of four"):
        bench.shard("perplexity", "3of3")
