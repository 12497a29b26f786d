"""What templates and names may not reach: the interpreter, other files, all memory, folders above."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fuzz import limited
from quantmill import bounded
from quantmill.checkpoint.safetensors import Checkpoint
from quantmill.config import file as user
from quantmill.corpus.chat import ChatTemplate
from quantmill.errors import QuantmillError
from quantmill.formats import publication
from quantmill.publish import files as published
from quantmill.recipe import interchange, render, rules
from readers import header, sample_of

ESCAPES = (
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ ''|attr('__class__') }}",
    "{{ ''|attr('__cla' ~ 'ss__') }}",
    "{{ refuse.__globals__ }}",
    "{{ layers_of.__code__ }}",
    "{{ layers_of.__closure__[0].cell_contents }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{0[__class__]}'.format_map({'0': ''}) }}",
    "{{ ('{0.__globals__}').format(refuse) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ tensors.append.__self__.__class__ }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}",
    "{% set x = refuse.__func__ %}{{ x }}",
    "{{ [].__reduce_ex__(2) }}",
    "{{ model.__init__ }}",
    "{% include '/etc/passwd' %}",
    "{% include '../../config.yaml' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
)
HUNGRY = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(10 ** 9) }}",
    "{{ 'x' * 10 ** 11 }}",
    "{{ '%0100000000000d' % 1 }}",
    "{{ 'x'.ljust(10 ** 11) }}",
    "{{ 'x'|center(10 ** 11) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set x = namespace(n=9) %}{% for a in range(99) %}{% set x.n = x.n * x.n %}{% endfor %}",
    "{{ [0] * 10 ** 11 }}",
    "{% set x = namespace(t='x' * 1000) %}{% for a in range(99) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a second takes too long."""
    waits = (0.5,)
    assert bounded.bounded.__wrapped__.__defaults__ == (bounded.SECONDS,)  # type: ignore[attr-defined]
    monkeypatch.setattr(bounded.bounded.__wrapped__, "__defaults__", waits)  # type: ignore[attr-defined]


def refused(template: str) -> str:
    """The line by which a template is refused."""
    with pytest.raises(QuantmillError) as caught, limited(10):
        render.render(f"base: Q8_0\nnotes: [x]\nimatrix: {template}", {}, render.facts(header()), "x.yaml.j2")
    line = str(caught.value)
    assert line.startswith("x.yaml.j2: ") and line.isprintable()
    return line


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_reaches_neither_the_interpreter_nor_files(template: str) -> None:
    line = refused(template)
    for secret in ("<class", "<module", "root:", "<function", "<cell"):
        assert secret not in line


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("template", HUNGRY)
def test_a_template_takes_neither_all_time_nor_all_memory(template: str) -> None:
    assert "template" in refused(template)


@pytest.mark.usefixtures("hurried")
def test_so_it_is_with_the_line_of_the_engine() -> None:
    with pytest.raises(QuantmillError, match="its engine does not follow"), limited(10):
        render.engine_of(f"engine: {HUNGRY[0]}", {}, None, "x.yaml.j2")


@pytest.mark.usefixtures("hurried")
def test_a_chat_template_without_end_ends_the_run() -> None:
    template = ChatTemplate(HUNGRY[0], bos="", eos="")
    with pytest.raises(QuantmillError, match=r"^a row: the chat template takes more than 0.5 s; choose"):
        template.render([{"role": "user", "content": "x"}])


@pytest.mark.usefixtures("hurried")
def test_a_regular_expression_without_end() -> None:
    pattern = "(([a-z._0-9])+)+X"
    recipe = rules.parse(
        json.dumps({"base": "Q8_0", "rules": [{"match": pattern, "type": "q8_0"}]}), "r.yaml"
    )
    every = frozenset(tensor.name for tensor in header().tensors)
    with pytest.raises(
        QuantmillError, match=r"^r.yaml: rule 1: `\(.*` takes more than 0.5 s; write it without"
    ):
        rules.assign(recipe, header(), every, "r.yaml")
    with pytest.raises(QuantmillError, match=r"^x: line 1: `\(.*` takes more than 0.5 s; write it without"):
        interchange.of_lines([("line 1", f"{pattern}=q8_0")], header(), "x")


NAMES = (
    "../x",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "-rf",
    "a\0b",
    "a\nb",
    "a\n",
    "a b",
    "",
    "x" * 101,
    "e\u0301",
    "ü",
    "{x}",
    "*",
    "~",
    "a..b",
    "a.",
    ".hidden",
    "a\\b",
    "$(id)",
)


def config(**changes: Any) -> dict[str, Any]:
    return {"models": {"m": {"source": {"path": "m.gguf"}}}, "recipes": ["Q8_0"]} | changes


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_names(name: str) -> None:
    configs = [
        config(models={name: {"source": {"path": "m.gguf"}}}),
        config(recipes=[name]),
        config(recipes=[{"name": name, "base": "Q8_0"}]),
        config(recipes=[{"name": "x", "template": name}]),
        config(corpora={name: {"sources": [{"name": "x", "path": "x.txt", "weight": 1.0}]}}),
        config(corpora={"c": {"sources": [{"name": name, "path": "x.txt", "weight": 1.0}]}}),
    ]
    for given in configs:
        with pytest.raises(QuantmillError) as caught:
            user.parse(given)
        assert str(caught.value).startswith("config.yaml: ") and str(caught.value).isprintable()
    assert user.parse(config())


FILES = (
    "../x.gguf",
    "a/../../x.gguf",
    "a/..//../x.gguf",
    "./x.gguf",
    "/x.gguf",
    "a\0.gguf",
    "a\n.gguf",
    f"{'x' * 300}.gguf",
    f"{'ü' * 125}.gguf",
    "{x}.gguf",
    "x.txt",
)


@pytest.mark.parametrize("name", FILES)
def test_files_of_a_repository_stay_in_their_folder(name: str) -> None:
    for source in ({"hf": "a/b", "file": name, "revision": "0" * 40}, {"package": "p", "file": name}):
        with pytest.raises(QuantmillError) as caught:
            user.parse(config(models={"m": {"source": source}}))
        assert str(caught.value).startswith("config.yaml: models.m.source.file: ")
    sound = {"hf": "a/b", "file": "Q8_0/-x ü.gguf", "revision": "0" * 40}
    made = user.parse(config(models={"m": {"source": sound}}))
    assert made.source_files("m") == [Path("results/m/source/Q8_0/-x ü.gguf")]


@pytest.mark.parametrize("field", ["results", "path"])
def test_a_path_that_no_file_system_holds(field: str) -> None:
    name = f"{'x' * 300}.gguf"
    given = config(results=name) if field == "results" else config(models={"m": {"source": {"path": name}}})
    with pytest.raises(QuantmillError, match=r"is longer than 241 bytes; shorten it"):
        user.parse(given)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "x" * 300, "a\0b", "nothing"])
def test_what_is_published_lies_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "gguf").mkdir()
    facts = sample_of(publication.Facts) | {"parts": [{"file": name, "bytes": 1, "sha256": "0" * 64}]}
    (tmp_path / "gguf" / "m-Q8_0.json").write_text(json.dumps(facts))
    with pytest.raises(QuantmillError, match=r"m-Q8_0.json: names .*, which is no file beside it; delete"):
        list(published._quant(tmp_path / "gguf", "m-Q8_0.json"))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b", "\0", "x" * 300, "..", "."])
def test_the_shards_of_a_checkpoint_lie_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    (tmp_path / "c").mkdir()
    index = {"weight_map": {"x": name}}
    (tmp_path / "c" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(QuantmillError, match=r"(no .*, named by model.safetensors|holds NUL|no valid JSON)"):
        Checkpoint(tmp_path / "c")
    assert sorted(os.listdir(tmp_path)) == ["c", "x.safetensors"]
