"""Plain lines in a log, a bar only on a terminal."""

import sys
import time
from pathlib import Path

import pytest

from quantmill import progress
from quantmill.progress import Log, Work


def test_lines_go_to_the_log_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = progress.Log(tmp_path / "logs" / "x.log")
    log.say("one")
    log.say("two")
    assert (tmp_path / "logs" / "x.log").read_text("utf-8") == "one\ntwo\n"
    assert capfd.readouterr() == ("", "")


def test_without_a_file_lines_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    progress.Log().say("one")
    assert capfd.readouterr().err == "one\n"


def test_a_log_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    progress.Log(path).say("before")
    progress.Log(path).say("after")
    assert path.read_text("utf-8") == "after\n"


class Clock:
    """A clock that a test moves; `log` is a log whose progress goes by it."""

    def __init__(self, path: Path) -> None:
        self.now = 100.0
        self.log = progress.Log(path)
        self.path = path

    @property
    def lines(self) -> list[str]:
        return self.path.read_text("utf-8").splitlines()


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock(tmp_path / "x.log")
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def test_rate_and_remaining_time(clock: Clock) -> None:
    with clock.log.progress("imatrix", 40, "chunks") as bar:
        assert clock.lines == ["imatrix: 0 of 40 chunks"]  # at once: what, and how much
        clock.now += 5
        bar.add(10)
        assert len(clock.lines) == 1  # a line every ten seconds, not one a unit
        clock.now += 5
        bar.add(10)
        clock.now += 10
        bar.add(20)
    assert clock.lines[1:] == [
        "imatrix: 20 of 40 chunks, 2 chunks/s, 10 s left",
        "imatrix: 40 of 40 chunks, 2 chunks/s, 0 s left",
        "imatrix: 40 of 40 chunks, 2 chunks/s, in 20 s",
    ]


def test_lines_come_while_a_unit_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.05)
    path = tmp_path / "x.log"
    with progress.Log(path).progress("imatrix", 2, "chunks"):
        deadline = time.monotonic() + 10
        while len(lines := path.read_text("utf-8").splitlines()) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines[0] == "imatrix: 0 of 2 chunks"
    assert len(path.read_text("utf-8").splitlines()) >= 4  # the last one: how long it took


def test_before_the_first_unit_a_line_says_how_long_it_has_been(clock: Clock) -> None:
    with clock.log.progress("imatrix", 2, "chunks") as bar:
        clock.now += 95
        bar.line()
    assert clock.lines[1] == "imatrix: 0 of 2 chunks, after 1:35"


def test_no_line_comes_after_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.01)
    path = tmp_path / "x.log"
    with pytest.raises(ValueError, match="x"), progress.Log(path).progress("imatrix", 2, "chunks"):
        raise ValueError("x")
    before = path.read_text("utf-8")
    time.sleep(0.05)
    assert path.read_text("utf-8") == before


def test_fractions_read_well_and_add_up(clock: Clock) -> None:
    with clock.log.progress("perplexity", 32, "chunks") as bar:
        for _ in range(25):
            clock.now += 0.5
            bar.add(0.125)
        bar.line()
        for _ in range(3 * 28 + 26):
            bar.add(1 / 3)
            bar.add(-1 / 12)
        bar.add(32 - 3.125 - 110 / 4)
    assert clock.lines[-2] == "perplexity: 3.1 of 32 chunks, 4 s a chunk, 1:56 left"
    assert clock.lines[-1].startswith("perplexity: 32 of 32 chunks, ")


def test_bytes_are_shown_as_people_read_them(clock: Clock) -> None:
    with clock.log.progress("hashing a.gguf", 54 * 2**30, progress.BYTES) as bar:
        clock.now += 10
        bar.add(18 * 2**30)
    assert clock.lines[1] == "hashing a.gguf: 18.0 of 54.0 GiB, 1.8 GiB/s, 20 s left"
    assert progress.amounts(5.3 * 2**20, 6 * 2**20, progress.BYTES) == "5.3 of 6.0 MiB"
    assert progress.amounts(1234567, 2000000, "rows") == "1,234,567 of 2,000,000 rows"
    assert progress.amounts(sum([0.1] * 10), 1, "chunks") == "1 of 1 chunks"


def test_units_of_an_earlier_run_say_nothing_of_the_time(clock: Clock) -> None:
    with clock.log.progress("divergence", 100, "chunks") as bar:
        bar.reuse(60)
        clock.now += 10
        bar.add(4)
    assert clock.lines[1] == "divergence: 64 of 100 chunks, 2.5 s a chunk, 1:30 left"


def test_an_estimate_ends_on_time_while_a_unit_is_computed() -> None:
    """After each of ten units of 10 s; a unit that takes longer than any before leaves it as it is."""
    remaining = progress.Remaining([Work("", 10)], 0)
    assert remaining.estimate(3) is None
    remaining.add(Work("", 1), 10)
    assert [remaining.estimate(now) for now in (10, 15, 20, 50)] == [90, 85, 80, 80]


@pytest.mark.parametrize("order", ["slow first", "fast first", "mixed"])
def test_a_tenth_of_the_work_gives_the_time_within_half(order: str) -> None:
    """Types of which a byte takes 50 times as long, and a table that is wrong about one by a third."""
    table, true = {"iq1_s": 50.0, "q4_K": 8.0, "q8_0": 1.0}, {"iq1_s": 100.0, "q4_K": 12.0, "q8_0": 2.0}
    units = ["iq1_s"] * 50 + ["q4_K"] * 30 + ["q8_0"] * 40
    if order == "fast first":
        units.reverse()
    elif order == "mixed":
        units = [units[37 * number % 120] for number in range(120)]
    whole = sum(true[one] for one in units)
    remaining = progress.Remaining([Work(unit, table[unit]) for unit in units], 0)
    now = 0.0
    for unit in units:
        now += true[unit]
        remaining.add(Work(unit, table[unit]), now)
        estimate = remaining.estimate(now)
        assert estimate is not None
        if now >= whole / 10:
            assert whole / 1.5 < now + estimate < whole * 1.5


def test_each_kind_has_its_own_rate_once_it_is_known() -> None:
    """The table says that both take as long, and one takes ten times as long as the other."""
    remaining = progress.Remaining([Work("slow", 100), Work("fast", 100)], 0)
    now = 0.0
    for _ in range(50):
        now += 10
        remaining.add(Work("slow", 1), now)
        now += 1
        remaining.add(Work("fast", 1), now)
    assert remaining.estimate(now) == pytest.approx(550, rel=0.01)
    for _ in range(50):
        now += 10
        remaining.add(Work("slow", 1), now)
    assert remaining.estimate(now) == pytest.approx(50, rel=0.9)


def test_work_of_kinds_weighs_the_remaining_time(clock: Clock) -> None:
    work = [Work("q8_0", 10), Work("iq1_s", 90)]
    with clock.log.progress("quantize", 200 * 2**20, progress.BYTES, work) as bar:
        clock.now += 20
        bar.add(100 * 2**20)
        clock.now += 180
        bar.add(100 * 2**20)
    assert clock.lines[1:] == [
        "quantize: 100.0 of 200.0 MiB, 3:00 left",
        "quantize: 200.0 of 200.0 MiB, 0 s left",
        "quantize: 200.0 of 200.0 MiB, in 3:20",
    ]


def test_no_bar_where_there_is_no_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with progress.Log(tmp_path / "x.log").progress("imatrix", 2, "chunks") as bar:
        bar.add(2)
    assert capfd.readouterr().err == ""


def test_a_terminal_without_a_log_shows_the_bar_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Log().progress("imatrix", 4, "chunks") as bar:
        bar.add(3)
    assert "\n" not in capsys.readouterr().err


def test_a_terminal_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_BAR_EVERY_SECONDS", 0.01)
    with progress.Log(tmp_path / "x.log").progress("imatrix", 4, "chunks") as bar:
        time.sleep(0.02)
        bar.add(3)
    assert "imatrix: 3 of 4 chunks" in capsys.readouterr().err


def test_a_log_goes_on_where_another_process_stopped(tmp_path: Path) -> None:
    Log(tmp_path / "log").say("one")
    Log(tmp_path / "log", more=True).say("two")
    assert (tmp_path / "log").read_text("utf-8") == "one\ntwo\n"
