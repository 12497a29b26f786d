"""The recipe language: what is parsed, what is refused, which rule decides."""

from pathlib import Path

import pytest

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import read_header
from quantmill.recipe import rules

DATA = Path(__file__).parents[2] / "data"
MOE = read_header(DATA / "tiny-moe.gguf")
QUANTIZABLE = frozenset(
    t.name for t in MOE.tensors if len(t.shape) > 1 and "norm" not in t.name and t.type == "f16"
)
TEXT = """
engine: mainline
base: q4_k_m
imatrix: required
rules:
  - {role: ffn_down_exps, layers: [0], type: q6_k, why: "edge: experts"}
  - {match: 'blk\\.1\\.ffn_.*\\.weight', type: q5_K, optional: true}
"""


def recipe(*lines: str, base: str = "Q4_K_M") -> rules.Recipe:
    return rules.parse("\n".join([f"base: {base}", "rules:", *(f"  - {line}" for line in lines)]), "r.yaml")


def assign(*lines: str) -> dict[str, int]:
    decided = rules.assign(recipe(*lines), MOE, QUANTIZABLE, "r.yaml")
    return {name: rule.number for name, rule in decided.items()}


def test_a_recipe_is_parsed_and_dumped_canonically() -> None:
    parsed = rules.parse(TEXT, "r.yaml")
    assert (parsed.base.name, parsed.base.file_type, parsed.imatrix) == ("Q4_K_M", 15, "required")
    assert parsed.rules[0] == rules.Rule(1, "q6_K", ("ffn_down_exps",), None, (0,), "edge: experts")
    assert parsed.rules[0].label == "rule 1: edge: experts"
    assert parsed.rules[1].label == "rule 2"
    dumped = rules.dump(parsed)
    assert rules.parse(dumped, "r.yaml") == parsed
    assert rules.dump(rules.parse(dumped, "r.yaml")) == dumped


def test_a_base_alone_is_a_recipe() -> None:
    parsed = rules.parse("base: Q8_0", "r.yaml")
    assert (parsed.engine, parsed.imatrix, parsed.rules) == ("mainline", "optional", ())
    assert rules.dump(parsed) == "engine: mainline\nbase: Q8_0\nimatrix: optional\nrules: []\n"


@pytest.mark.parametrize(
    ("base", "name", "file_type", "kind"),
    [
        ("Q4_K", "Q4_K_M", 15, None),
        ("iq2_m", "IQ2_M", 29, None),
        ("Q4_0", "Q4_0", 2, None),
        ("q4_0", "q4_0", 2, "q4_0"),
        ("q4_K", "q4_K", 14, "q4_K"),
        ("iq2_s", "iq2_s", 29, "iq2_s"),
        ("nvfp4", "nvfp4", 39, "nvfp4"),
        ("bf16", "bf16", 32, "bf16"),
    ],
)
def test_a_base_is_a_preset_or_exactly_a_type(base: str, name: str, file_type: int, kind: str | None) -> None:
    resolved = recipe("{role: attn_q, type: f16}", base=base).base
    assert (resolved.name, resolved.file_type, resolved.type) == (name, file_type, kind)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: q4_k", "base q4_k may be the preset Q4_K_M or the type q4_K; write Q4_K for the preset"),
        ("base: Q4_K_N", r"base Q4_K_N is neither a preset nor a type; did you mean Q4_K_"),
        ("base: q8_1", "base q8_1 is a type that cannot be written"),
        ("engine: mainline", "field base is missing"),
        ("base: Q8_0\nengine: ik", "base Q8_0 is no type of engine ik; name a type for all, such as iq4_k"),
        ("base: IQ4_K", "base IQ4_K is a type of engine ik"),
        ("engine: ik\nbase: iq4_k\nrules: [{role: output, type: nvfp4}]", ".*engine ik lacks the type nvfp4"),
        ("base: Q8_0\nimatrix: maybe", "field imatrix: unknown value maybe"),
        ("base: Q8_0\nbase: Q6_K", "line 2: base is there twice; rename or remove one"),
        ("base: Q8_0\nrule: []", "unknown field rule; did you mean rules"),
        ("base: 3", "field base is 3; it takes text"),
        ("base: Q8_0\nrules: {}", "field rules is {}; it takes a list"),
        ("base: Q8_0\nrules: [x]", r"field rules\[1\] is no mapping"),
        ("base: [", "no valid YAML in line"),
        ("Q8_0", "no recipe"),
        ("", "no recipe"),
    ],
)
def test_a_broken_recipe_is_refused(text: str, message: str) -> None:
    with pytest.raises(QuantmillError, match=rf"^r.yaml: {message}") as caught:
        rules.parse(text, "r.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("{type: q8_0}", r"rules\[2\] has neither role nor match"),
        ("{role: output}", r"field rules\[2\].type is missing"),
        ("{role: outputs, type: q8_0}", r"field rules\[2\].role: unknown value outputs; did you mean output"),
        ("{role: [], type: q8_0}", r"field rules\[2\].role is an empty list"),
        ("{role: output, typ: q8_0}", r"unknown field rules\[2\].typ; did you mean type"),
        ("{role: output, type: q9_K}", r"field rules\[2\].type: unknown type q9_K; did you mean"),
        ("{role: output, type: IQ3_M}", r"field rules\[2\].type: IQ3_M is a preset"),
        ("{role: output, type: iq5_k}", r"field rules\[2\].type: engine mainline lacks the type iq5_k"),
        ("{role: output, type: q8_1}", r"field rules\[2\].type: q8_1 cannot be quantized to"),
        ("{match: '(', type: q8_0}", r"field rules\[2\].match is no regular expression"),
        ("{role: attn_q, layers: [a], type: q8_0}", r"field rules\[2\].layers is no list of layer"),
        (
            "{role: attn_q, layers: [true], type: q8_0}",
            r"field rules\[2\].layers is no list of layer",
        ),
        ("{role: attn_q, layers: 3, type: q8_0}", r"field rules\[2\].layers is 3; it takes a list"),
        (
            "{role: attn_q, optional: 1, type: q8_0}",
            r"field rules\[2\].optional is 1; it takes true",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_field(rule: str, message: str) -> None:
    with pytest.raises(QuantmillError, match=rf"^r.yaml: {message}"):
        recipe("{role: attn_k, type: q8_0}", rule)


def test_the_first_rule_that_matches_decides() -> None:
    decided = assign(
        "{role: ffn_down_exps, layers: [0], type: q8_0}",
        "{role: [ffn_down_exps, ffn_up_exps], type: q6_K}",
        "{match: 'blk.1.ffn_.*_exps.weight', type: q5_K}",
    )
    assert decided == {
        "blk.0.ffn_down_exps.weight": 1,
        "blk.1.ffn_down_exps.weight": 2,
        "blk.0.ffn_up_exps.weight": 2,
        "blk.1.ffn_up_exps.weight": 2,
        "blk.1.ffn_gate_exps.weight": 3,
    }


def test_the_whole_name_must_match() -> None:
    with pytest.raises(QuantmillError, match="a match is of the whole name"):
        assign("{match: attn_q, type: q8_0}")
    assert set(assign("{match: '.*attn_q.weight', type: q8_0}")) == {"blk.1.attn_q.weight"}


def test_what_is_never_quantized_is_left_out_of_a_broad_rule() -> None:
    decided = assign("{match: 'blk.1.*', type: q8_0}")
    assert "blk.1.attn_norm.weight" not in decided
    assert "blk.1.attn_q.weight" in decided


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            ["{role: attn_kv_b, type: q8_0}"],
            "rule 1: matches no tensor; take one of the model's roles .attn_gate",
        ),
        (["{role: attn_q, layers: [0], type: q8_0, why: w}"], "rule 1: w: matches no tensor"),
        (
            ["{role: attn_q, layers: [2], type: q8_0}"],
            "rule 1: the model has no layer 2; its layers are 0 to 1",
        ),
        (["{role: attn_q, layers: [-1], type: q8_0}"], "rule 1: the model has no layer -1"),
        (["{role: norm, type: q8_0}"], "rule 1: matches only tensors that are never quantized, such as"),
        (
            ["{role: attn_q, type: q8_0}", "{match: '.*attn_q.weight', type: q6_K}"],
            "rule 2: wholly shadowed by rule 1",
        ),
        (
            [
                "{role: attn_q, type: q8_0}",
                "{role: attn_k, type: q8_0}",
                "{role: [attn_k, attn_q], type: q6_K}",
            ],
            "rule 3: wholly shadowed by rules 1, 2",
        ),
    ],
)
def test_a_rule_that_does_nothing_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(QuantmillError, match=rf"^r.yaml: {message}"):
        assign(*lines)


def test_a_rule_may_be_optional() -> None:
    assert assign("{role: attn_kv_b, type: q8_0, optional: true}") == {}
    decided = assign("{role: attn_q, type: q8_0}", "{role: attn_q, type: q6_K, optional: true}")
    assert decided == {"blk.1.attn_q.weight": 1}
