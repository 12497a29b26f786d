"""The arithmetic of the benchmarks' pairs, and how a side is run."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def pairs() -> ModuleType:
    place = importlib.util.spec_from_file_location("benchmarks_pairs", BENCHMARKS / "pairs.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module
    place.loader.exec_module(module)
    return module


def test_sides_alternate_and_are_told_apart(pairs: ModuleType) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> dict[str, float]:
        order.append(name)
        return {"seconds": seconds}

    taken = pairs.alternate(lambda: side("ours", 1.0), lambda: side("theirs", 2.0), 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert taken == [({"seconds": 1.0}, {"seconds": 2.0})] * 3


def test_the_ratio_is_the_median_of_the_pairs_ratios(pairs: ModuleType) -> None:
    taken = [({"s": 1.0}, {"s": 2.0}), ({"s": 9.0}, {"s": 10.0}), ({"s": 4.0}, {"s": 5.0})]
    assert pairs.compare(taken, "s") == pairs.Comparison(4.0, 5.0, 0.8, 0.5, 0.9)


def test_run_takes_time_peak_and_output(pairs: ModuleType) -> None:
    done = pairs.run([sys.executable, "-c", "x = bytearray(64 << 20); print('done')"])
    assert done.output == "done\n"
    assert 64 << 20 < done.peak < 256 << 20
    assert done.seconds > 0


def test_the_memory_of_the_benchmark_itself_is_not_counted(pairs: ModuleType) -> None:
    large = bytearray(b"x") * (200 << 20)
    done = pairs.run([sys.executable, "-c", "pass"])
    assert len(large) > done.peak
    assert done.peak < 64 << 20


def test_a_side_that_fails_ends_the_benchmark(pairs: ModuleType) -> None:
    with pytest.raises(SystemExit, match="it broke\nerror: exit code 3"):
        pairs.run([sys.executable, "-c", "print('it broke'); raise SystemExit(3)"])
