"""Templates: what they are given, what comes out, and errors in one line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.recipe import rules
from quantmill.recipe.render import engine_of, facts, render

ROOT = Path(__file__).parents[3]
MOE = ROOT / "tests" / "data" / "tiny-moe.gguf"
KNOWN = facts(read_header(MOE))
TIED = KNOWN | {"roles": [role for role in KNOWN["roles"] if role != "output"]}


def family(name: str, parameters: dict[str, Any], known: dict[str, Any] = KNOWN) -> str:
    return render(
        (ROOT / "recipes" / f"{name}.yaml.j2").read_text("utf-8"), parameters, known, f"{name}.yaml.j2"
    )


def test_the_facts() -> None:
    model = KNOWN["model"]
    assert (model["architecture"], model["layers"], model["experts"]) == ("qwen35moe", 2, 4)
    assert model["full_attention"] == [1]
    assert KNOWN["layers_of"]("ssm_out") == [0]
    assert KNOWN["edges"](1) == [0, 1]
    assert {"output", "token_embd", "ffn_down_exps"} < set(KNOWN["roles"])
    assert len(KNOWN["tensors"]) == 38


def test_a_preset() -> None:
    assert family("preset", {"base": "Q4_K_M"}) == (
        "engine: mainline\nbase: Q4_K_M\nimatrix: optional\nrules: []\n"
    )


def test_a_preset_with_larger_embeddings_and_output() -> None:
    text = family("preset", {"base": "Q4_K_M", "embeddings": "q8_0", "output": "q6_K", "imatrix": "required"})
    parsed = rules.parse(text, "r.yaml")
    assert parsed.imatrix == "required"
    assert [(rule.roles, rule.type) for rule in parsed.rules] == [
        (("token_embd", "per_layer_token_embd"), "q8_0"),
        (("output",), "q6_K"),
    ]


def test_output_means_the_embeddings_where_the_model_shares_them() -> None:
    alone = rules.parse(family("preset", {"base": "Q4_K_M", "output": "q6_K"}, TIED), "r.yaml")
    assert [(rule.roles, rule.type) for rule in alone.rules] == [(("token_embd",), "q6_K")]
    both = rules.parse(
        family("preset", {"base": "Q4_K_M", "output": "q6_K", "embeddings": "q8_0"}, TIED), "r.yaml"
    )
    assert [rule.type for rule in both.rules] == ["q8_0"]


def test_a_presets_name_with_other_parameters_is_enough() -> None:
    plain = rules.parse(family("preset", {"imatrix": "none"}, KNOWN | {"recipe": "Q4_0"}), "r.yaml")
    assert (plain.base.name, plain.imatrix, plain.rules) == ("Q4_0", "none", ())
    assert rules.parse(family("preset", {}, KNOWN | {"recipe": "Q6_K_L"}), "r.yaml").rules[0].type == "q8_0"
    with pytest.raises(
        QuantmillError, match="base Q4_K_X is neither a preset nor a type; did you mean Q4_K_"
    ):
        family("preset", {}, KNOWN | {"recipe": "Q4_K_X"})


def test_rules_given_in_the_config() -> None:
    given = [{"role": "attn_q", "layers": [1], "type": "q6_K", "why": 'it\'s: "odd"'}]
    parsed = rules.parse(family("custom", {"base": "q4_K", "rules": given}), "r.yaml")
    assert parsed.base.type == "q4_K"
    assert parsed.rules == (rules.Rule(1, "q6_K", ("attn_q",), None, (1,), 'it\'s: "odd"'),)


@pytest.mark.parametrize(
    ("template", "parameters", "message"),
    [
        ("base: {{ base }}", {}, "template error: 'base' is undefined; give it among"),
        ("base: {{ base | tojson }}", {}, "template error: 'base' is undefined"),
        (
            "base: {{ base }}",
            {"base": "Q8_0", "bas": 1},
            "the template takes no parameter bas; did you mean",
        ),
        ("base: Q8_0", {"deep": 1}, "the template takes no parameter deep; it takes none"),
        ("base: {{ base }}", {"base": "Q8_0", "model": 1}, "the template takes no parameter model"),
        ("base: Q8_0\n{% if %}\n", {}, "template error in line 2"),
        ("base: {{ 1 / 0 }}", {}, "template error .ZeroDivisionError"),
        ("base: {{ model.nothing.more }}", {}, "template error: 'dict object' has no attribute"),
        ("base: {{ ''.__class__.__mro__ }}", {}, "template error .SecurityError"),
        ("base: {{ 'x' * 3 }}", {}, "base xxx is neither a preset nor a type"),
        ("base: Q8_0\nrules: [{role: x, type: q8_0}]", {}, r"field rules\[1\].role: unknown value x"),
    ],
)
def test_errors(template: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError, match=f"^t.j2: {message}") as caught:
        render(template, parameters, KNOWN, "t.j2")
    assert "\n" not in str(caught.value)


def command(template: Path, out: Path, parameters: str) -> subprocess.CompletedProcess[str]:
    spec = f'{{"config":{{"recipe":"R","imatrix":null,"parameters":{parameters}}}}}'
    return subprocess.run(
        [
            *(sys.executable, "-m", "quantmill.recipe.plan", "--spec", spec, "--model", MOE),
            *("--template", template, "--recipe", out, "--log", out.with_suffix(".log")),
            *("--plan", out.with_suffix(".tsv"), "--report", out.with_suffix(".json")),
        ],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("template", "parameters", "imported", "engine"),
    [
        ("ik", {}, None, "ik"),
        ("preset", {"base": "Q4_K_M"}, None, "mainline"),
        ("custom", {"base": "q4_K"}, None, "mainline"),
        ("custom", {"base": "iq4_k", "engine": "ik"}, None, "ik"),
        ("import", {}, "ik", "ik"),
        ("import", {"engine": "mainline"}, "ik", "mainline"),
        ("custom", {"engine": "no such"}, None, "mainline"),
    ],
)
def test_the_engine_is_told_without_the_model(
    template: str, parameters: dict[str, Any], imported: str | None, engine: str
) -> None:
    text = (ROOT / "recipes" / f"{template}.yaml.j2").read_text("utf-8")
    assert engine_of(text, parameters, imported, template) == engine


def test_an_engine_that_hangs_on_the_model_is_refused() -> None:
    text = "engine: {{ 'ik' if model.experts else 'mainline' }}\nbase: q8_0\n"
    with pytest.raises(QuantmillError, match="mine: its engine does not follow from its line `engine: "):
        engine_of(text, {}, None, "mine")
    assert engine_of("base: q8_0\n", {}, None, "mine") == "mainline"


def test_the_command(tmp_path: Path) -> None:
    template, out = ROOT / "recipes" / "preset.yaml.j2", tmp_path / "r.yaml"
    assert command(template, out, '{"base":"Q6_K"}').returncode == 0
    assert rules.parse(out.read_text("utf-8"), out).base.name == "Q6_K"
    done = command(template, tmp_path / "other.yaml", '{"bse":"Q6_K"}')
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"error: recipe R ({template}): the template takes no parameter bse; did")
    assert not (tmp_path / "other.yaml").exists()
    message = command(tmp_path / "none.j2", tmp_path / "other.yaml", "{}").stderr
    assert "no such file; check the recipe's field `template`" in message
