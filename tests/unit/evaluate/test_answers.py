"""Problems, the code in an answer, its audits, the interval."""

import gzip
import json
from pathlib import Path

import pytest
from scipy.stats import binomtest

from quantmill.errors import QuantmillError
from quantmill.evaluate.answers import code_of, is_fenced, is_repetition, is_verbatim, strip_thinking, wilson
from quantmill.evaluate.problems import Problem, read

DATA = Path(__file__).parents[2] / "data"
AREA, FOUR, LARGEST = read(DATA / "problems.jsonl")
WHOLE = "def area(radius):\n    return 3.14159265 * radius * radius\n"


def passes(code: str, problem: Problem = AREA) -> bool:
    """Whether code of this file passes its tests; here nothing generated is run."""
    try:
        exec(problem.program(code), {})
    except Exception:
        return False
    return True


@pytest.mark.parametrize(
    "answer",
    [
        WHOLE,
        f"```python\n{WHOLE}```",
        f"Sure, here it is:\n\n```python\n{WHOLE}```\nIt squares the radius.",
        f"```\n{WHOLE}",  # cut off
        f"First a test.\n```python\nassert area(0) == 0\n```\nThen\n```py\n{WHOLE}\n```",
        "    ```python\n" + "".join(f"    {line}\n" for line in WHOLE.splitlines()) + "    ```",
        "```python\n    return math.pi * radius**2\n```",
        "```python\nreturn math.pi * radius**2\n```",
        f"<think>```python\ndef area(radius): return 0\n```</think>\n{WHOLE}",
        f"I would write this.\n{WHOLE}",
        "```python\ndef area(radius):\n    return math.pi * radius**2\n```",  # math: of the prompt
    ],
)
def test_the_code_of_a_chat_is_found(answer: str) -> None:
    assert passes(code_of(answer, AREA, chat=True))


@pytest.mark.parametrize("answer", ["", "I cannot.", "<think>def area(radius): return 3", "```python\n```"])
def test_no_code_passes_nothing(answer: str) -> None:
    assert not passes(code_of(answer, AREA, chat=True))


def test_helpers_of_the_prompt_are_there_and_a_completion_goes_on_from_it() -> None:
    own = "def four(text):\n    return twice(text) * 2\n"
    assert passes(code_of(f"```python\n{own}```", FOUR, chat=True), FOUR)
    assert passes(code_of("    return twice(text) * 2\n", FOUR, chat=False), FOUR)
    assert not passes(code_of("    return text\n", FOUR, chat=False), FOUR)


def test_thoughts_and_fences() -> None:
    assert strip_thinking("<think>a</think>b") == "b"
    assert strip_thinking("<think>a") == ""
    assert strip_thinking("a") == "a"
    assert is_fenced("x\n```\na\n```") and not is_fenced("`a`") and not is_fenced("<think>```\na```</think>b")


def test_verbatim_is_the_authors_own_but_for_layout() -> None:
    assert all(is_verbatim(problem.solution, problem) for problem in (AREA, FOUR, LARGEST))
    assert is_verbatim("def largest(numbers):\n  return max( numbers, default = None )", LARGEST)
    assert not is_verbatim("def largest(values):\n    return max(values, default=None)", LARGEST)
    assert not is_verbatim("def largest(", LARGEST)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        (list(range(100)), False),
        ([1] * 31, False),
        ([1] * 32, True),
        ([*range(50), *[7, 8, 9] * 11], True),
        ([*range(50), *[7, 8, 9] * 10], False),
        ([*range(20)] * 3, False),
        ([99, *range(20), *range(20), *range(20), *range(20)], True),
        ([*[5] * 40, 6], False),
        ([], False),
    ],
)
def test_a_loop_at_the_end_is_repetition(tokens: list[int], loops: bool) -> None:
    assert is_repetition(tokens) == loops


@pytest.mark.parametrize(("passed", "count"), [(0, 164), (1, 164), (82, 164), (164, 164), (3, 5)])
def test_the_interval_is_wilsons(passed: int, count: int) -> None:
    expected = binomtest(passed, count).proportion_ci(0.95, method="wilson")
    assert wilson(passed, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 9)[0] == 0 and wilson(9, 9)[1] == 1


def test_problems_are_read_gzipped_or_not(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress((DATA / "problems.jsonl").read_bytes()))
    assert read(path) == [AREA, FOUR, LARGEST]
    assert read(path, 2) == [AREA, FOUR]
    assert AREA.preamble == "import math\n\n\n" and FOUR.preamble.startswith("def twice")


def test_problems_may_hold_line_separators_and_be_in_utf16(tmp_path: Path) -> None:
    row = json.loads((DATA / "problems.jsonl").read_text("utf-8").split("\n")[0])
    row["prompt"] = row["prompt"].replace('"""', '"""a\u2028b\x85c', 1)
    path = tmp_path / "p.jsonl"
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes((json.dumps(row, ensure_ascii=False) + "\r\n").encode(encoding))
        assert [problem.prompt for problem in read(path)] == [row["prompt"]]
    path.write_bytes(json.dumps(row).encode("utf-16-le"))
    with pytest.raises(QuantmillError, match="UTF-16 without a byte order mark"):
        read(path)


def without(field: str) -> str:
    row = json.loads((DATA / "problems.jsonl").read_text("utf-8").splitlines()[1])
    del row[field]
    return json.dumps(row)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (without("test"), "line 4: no field test; a problem has task_id, prompt, entry_point, canonical_sol"),
        (without("task_id"), "line 4: no field task_id; a problem has"),
        ("[1]", "line 4: no field task_id;"),
        ("{", "line 4: no JSON ("),
        (
            (DATA / "problems.jsonl").read_text("utf-8").splitlines()[0],
            "line 4: own/0 is there twice; remove one",
        ),
    ],
)
def test_a_broken_line_is_refused_by_its_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text((DATA / "problems.jsonl").read_text("utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(QuantmillError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_no_problems_and_no_file(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    with pytest.raises(QuantmillError, match="no such file"):
        read(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(QuantmillError, match="cannot be read"):
        read(path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(QuantmillError, match="holds no problems"):
        read(path)
