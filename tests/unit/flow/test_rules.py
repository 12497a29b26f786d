"""What the text of a rule is made with; and the rules, which are made with it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from quantmill import spec
from quantmill.errors import QuantmillError
from quantmill.flow.rules import files, of, pattern, refusing, spec_of, stage
from quantmill.stages import STAGES

WORKFLOW = Path(__file__).parents[3] / "workflow"
RULES = sorted((WORKFLOW / "rules").glob("*.smk"))
WILDCARDS = SimpleNamespace(model="m", recipe="r", row="x")


def refused(*_: str) -> str:
    raise QuantmillError("no such thing", "config.yaml: models.m", "add it")


def test_a_function_gets_the_wildcards_that_its_parameters_are_named_after() -> None:
    def swapped(recipe: str, model: str) -> list[str]:
        return [recipe, model]

    assert of(swapped)(WILDCARDS) == ["r", "m"]
    assert of(lambda: "none")(WILDCARDS) == "none"


def test_bad_input_ends_snakemake_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def bad(model: str) -> str:
        return refused(model)

    for call in (lambda: of(bad)(WILDCARDS), lambda: files(lambda: [refused()]), _within):
        with pytest.raises(SystemExit) as stop:
            call()
        assert stop.value.code == 1
        assert capsys.readouterr().err == "error: config.yaml: models.m: no such thing; add it\n"


def _within() -> None:
    with refusing():
        refused()


def test_a_long_spec_is_a_file(tmp_path: Path) -> None:
    def short(model: str) -> str:
        return f'{{"config":"{model}"}}'

    def long(model: str) -> str:
        return f'{{"config":"{model * 200_000}"}}'

    assert spec_of(short, tmp_path)(WILDCARDS) == '{"config":"m"}'
    argument = spec_of(long, tmp_path)(WILDCARDS)
    assert argument == f"@{spec.digest(long('m'))}"
    assert (tmp_path / argument[1:]).read_text("utf-8") == long("m")


def test_a_pattern_matches_its_names_and_no_other() -> None:
    names = re.compile(pattern({"a.b", "a"}))
    assert names.fullmatch("a.b") and names.fullmatch("a")
    assert not names.fullmatch("axb")
    assert not re.compile(pattern([])).match("")


def test_a_stage_gets_what_the_table_says() -> None:
    assert stage("measure.speed", "--model {input:q}") == (
        "exec python -m quantmill measure.speed --spec {params.spec:q} --model {input:q} --log {log:q}"
        " --memory {resources.mem_mb} --threads {threads} --name {wildcards.model:q}"
    )
    store = (
        ' --store "$QUANTMILL_STORE" --store-max "$QUANTMILL_STORE_MAX" --store-read "$QUANTMILL_STORE_READ"'
    )
    for name, known in STAGES.items():
        command = stage(name, "--x")
        assert ("--memory {resources.mem_mb}" in command) == known.memory
        assert ("--threads {threads}" in command) == known.threads
        assert ("--name {wildcards.model:q}" in command) == known.evaluates
        assert command.endswith(store) == known.store
    with pytest.raises(KeyError):
        stage("no.stage", "")


def commands(rules: str) -> list[str]:
    """The text of each rule that has a command, a comment left out."""
    lines = [line for line in rules.splitlines() if not line.lstrip().startswith("#")]
    return [
        rule for rule in re.split(r"^(?:use )?rule ", "\n".join(lines), flags=re.M)[1:] if "shell:" in rule
    ]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_each_rule_is_one_command_that_says_what_memory_it_asks_for(path: Path) -> None:
    # The watcher replaces the shell (`exec`): what came after the command would never run.
    for rule in commands(path.read_text("utf-8")):
        command = rule.partition("shell:")[2].strip()
        name = re.match(r'stage\(\s*"([\w.]+)",', command)
        assert name, rule
        assert not re.search(r"[;|]|&&|\\n", command), rule
        assert ("mem_mb=" in rule) == STAGES[name[1]].memory, rule


def test_the_rules_run_every_stage_and_no_other() -> None:
    texts = [rule for path in RULES for rule in commands(path.read_text("utf-8"))]
    named = [name for rule in texts for name in re.findall(r'stage\(\s*"([\w.]+)",', rule)]
    assert set(named) == set(STAGES)
    # A stage has one rule; and one for its shards, where it can be spread. A plan is made of a recipe that
    # is rendered by the same rule, or of one that was allocated.
    texts_of_shards = (WORKFLOW / "rules" / "shards.smk").read_text("utf-8")
    rules = {name: 1 + texts_of_shards.count(f'"{name}"') for name in STAGES} | {"recipe.plan": 2}
    assert {name: named.count(name) for name in STAGES} == rules


@pytest.mark.parametrize("path", [*RULES, WORKFLOW / "Snakefile"], ids=lambda path: path.stem)
def test_rules_hold_no_python_of_their_own(path: Path) -> None:
    assert not re.search(r"\bdef\b|\blambda\b|\bclass\b", path.read_text("utf-8"))
