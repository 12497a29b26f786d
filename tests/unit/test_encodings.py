"""Text is UTF-8 whatever the locale says: every file and pipe of text names its encoding."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    *sorted((ROOT / "workflow" / "quantmill").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
    *sorted((ROOT / "envs").glob("*.py")),
    *sorted((ROOT / "examples").rglob("*.py")),
]
RULES = sorted((ROOT / "workflow" / "rules").glob("*.smk"))
# What a program said on its way, and files of the kernel: no line of them holds data of ours.
_SPLIT_LINES_OF_PROGRAMS = {
    "checkpoint/convert",
    "formats/chunks",
    "signals",
    "engine/dryrun",
    "flow/logs",
    "machine",
    "measure/speed",
    "model/fetch",
    "serve/server",
    "watch",
}
_ENCODING_AT = {"read_text": 0, "write_text": 1}
_OF_BYTES = {"tarfile", "zipfile", "os"}  # modules whose `open` is of no text


def unnamed(source: str) -> list[int]:
    """The lines of the calls that read or write text in the locale's encoding."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if _unnamed(call)]


def _unnamed(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in given:
        return False
    if name in _ENCODING_AT:
        return len(call.args) <= _ENCODING_AT[name]
    if name in ("run", "Popen"):
        return "text" in given or "universal_newlines" in given
    if name == "open" and getattr(getattr(call.func, "value", None), "id", None) not in _OF_BYTES:
        place = 1 if isinstance(call.func, ast.Name) else 0
        mode = call.args[place] if len(call.args) > place else given.get("mode", ast.Constant("r"))
        is_mode = isinstance(mode, ast.Constant) and isinstance(mode.value, str)
        return is_mode and set(mode.value) <= set("rwaxt+")
    return False


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_read_and_written_as_utf8(path: Path) -> None:
    assert unnamed(path.read_text("utf-8")) == []


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_rules_read_text_as_utf8(path: Path) -> None:
    text = path.read_text("utf-8")
    assert ".read_text()" not in text and "read_text(errors" not in text


def test_data_is_never_split_at_unicodes_line_separators() -> None:
    """`splitlines` cuts JSON lines and tables at U+2028, U+0085 and more; `files.split_lines` does not."""
    package = ROOT / "workflow" / "quantmill"
    using = {
        path.relative_to(package).with_suffix("").as_posix()
        for path in package.rglob("*.py")
        if ".splitlines(" in path.read_text("utf-8")
    }
    assert using == _SPLIT_LINES_OF_PROGRAMS


@pytest.mark.parametrize(
    "call",
    [
        "p.read_text()",
        "p.write_text(x)",
        "open(p)",
        'open(p, "w")',
        'p.open("a")',
        "p.open()",
        "subprocess.run(x, text=True)",
    ],
)
def test_what_takes_the_locales_encoding_is_found(call: str) -> None:
    assert unnamed(call) == [1]


@pytest.mark.parametrize(
    "call",
    [
        'p.read_text("utf-8")',
        'p.write_text(x, "utf-8")',
        'open(p, "rb")',
        'p.open("xb")',
        'p.open("a", encoding="utf-8")',
        "tarfile.open(path)",
        'subprocess.run(x, encoding="utf-8")',
    ],
)
def test_what_names_it_is_not(call: str) -> None:
    assert unnamed(call) == []
