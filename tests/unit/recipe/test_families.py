"""The published families at their real sizes, from headers alone, and what each template does and refuses."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import headers as shapes
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header, read_header
from quantmill.model.header import read_source
from quantmill.recipe import interchange, plan, presets, rules
from quantmill.recipe.importance import ranked
from quantmill.recipe.render import facts, main_layers, render

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"
MODELS = {"qwen35": shapes.qwen35, "qwen35moe": shapes.qwen35moe, "gemma4": shapes.gemma4}
GB, GIB = 10**9, 2**30


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Header]:
    folder = tmp_path_factory.mktemp("headers")
    headers = {name: read_source(make(folder / f"{name}.gguf")) for name, make in MODELS.items()}
    return headers | {"mtp": read_source(shapes.qwen35(folder / "mtp.gguf", mtp=True, source="q8_0"))}


def rendered(header: Header, template: str, name: str, parameters: dict[str, Any]) -> rules.Recipe:
    known = facts(header) | {"recipe": name}
    if template.startswith("contrib"):
        scores = {layer: -float(layer) for layer in main_layers(header)}
        known |= {"importance": scores, "ranked": ranked(scores)}
    text = (ROOT / "recipes" / f"{template}.yaml.j2").read_text("utf-8")
    return rules.parse(render(text, parameters, known, f"{template}.yaml.j2"), name)


MIXTURES: dict[tuple[Path, str, bool], Any] = {}


def planned(
    header: Header, template: str, name: str, *, configured: bool = True, **parameters: Any
) -> dict[str, Any]:
    """The report of a recipe's plan, with its rows by name beside it."""
    if template == "preset":
        parameters = {"base": name} | parameters
    recipe = rendered(header, template, name, parameters)
    used = plan.use_imatrix(recipe, configured, name)
    key = (header.path, recipe.base.name, used)
    MIXTURES[key] = MIXTURES.get(key) or presets.mixture(header, recipe.base, imatrix=used)
    resolved = plan.resolve(header, recipe, MIXTURES[key], imatrix=used, where=name)
    return plan.report(header, resolved, name, None) | {"rows": {row.name: row.type for row in resolved.rows}}


# (model, template, recipe, parameters, published size, its unit), from the publishers' cards.
PUBLISHED: list[tuple[str, str, str, dict[str, Any], float, float]] = [
    ("qwen35", "preset", "Q8_0", {}, 26.622 + 0.01, GIB),  # 27,260.56 MiB of tensors
    ("qwen35", "preset", "Q4_K_M", {}, 15.4007 + 0.01, GIB),
    ("qwen35", "preset", "IQ4_XS", {}, 14.036 + 0.01, GIB),
    ("qwen35", "ik", "IQ4_K", {}, 14.4, GIB),
    ("qwen35", "ik", "IQ4_KS", {}, 13.7, GIB),
    ("qwen35", "ik", "IQ3_K", {}, 11.1, GIB),
    ("gemma4", "preset", "Q4_K_M", {}, 13.24, GB),
    ("gemma4", "preset", "Q6_K", {}, 17.81, GB),
    ("gemma4", "preset", "Q8_0", {}, 21.16, GB),
    ("gemma4", "preset", "Q3_K_XL", {"base": "Q3_K_M", "embeddings": "q8_0", "output": "q8_0"}, 10.69, GB),
    ("gemma4", "preset", "Q4_0", {"imatrix": "none"}, 11.42, GB),
    ("gemma4", "preset", "IQ3_M", {}, 9.82, GB),
    ("gemma4", "preset", "Q2_K", {}, 8.40, GB),
    ("gemma4", "preset", "IQ2_S", {}, 7.83, GB),
    ("gemma4", "preset", "IQ2_XS", {}, 7.77, GB),
    ("gemma4", "preset", "IQ2_XXS", {}, 7.37, GB),
    ("gemma4", "contrib-mix", "CD-Q6_K_L", {"base": "Q6_K", "variant": "L"}, 14.95, GB),
    ("gemma4", "contrib-mix", "CD-Q4_K_M_L", {"base": "Q4_K_M", "variant": "L"}, 13.0, GB),
    ("gemma4", "contrib-mix", "CD-IQ3_M_L", {"base": "IQ3_M", "variant": "L"}, 10.19, GB),
    # the published full overrides have four MID layers, to go by their sizes, and not seven
    ("gemma4", "contrib-dynamic", "CD-Q6_K", {"mid": 4}, 15.44, GB),
    ("gemma4", "contrib-dynamic", "CD-Q4_K_M", {"mid": 4}, 10.59, GB),
    ("qwen35moe", "preset", "F16", {}, 64.61, GIB),
    ("qwen35moe", "apex", "Quality", {}, 21.25, GIB),
    ("qwen35moe", "apex", "I-Quality", {}, 21.25, GIB),
    ("qwen35moe", "apex", "APEX-Balanced", {}, 23.60, GIB),
    ("qwen35moe", "apex", "I-Balanced", {}, 23.60, GIB),
    ("qwen35moe", "apex", "Compact", {}, 15.40, GIB),
    ("qwen35moe", "apex", "I-Compact", {}, 15.40, GIB),
]


@pytest.mark.parametrize(("model", "template", "name", "parameters", "size", "unit"), PUBLISHED)
def test_a_published_size(
    headers: dict[str, Header],
    model: str,
    template: str,
    name: str,
    parameters: dict[str, Any],
    size: float,
    unit: float,
) -> None:
    planned_recipe = planned(headers[model], template, name, **parameters)
    assert planned_recipe["file_bytes"] == pytest.approx(size * unit, rel=0.005)


# Of Darwin-36B-Opus, the same shapes, in GiB as `ls -h` rounds them: up.
ROUNDED = {"I-Quality": 22, "Balanced": 24, "I-Balanced": 24, "I-Compact": 16, "I-Mini": 13, "I-Nano": 11}


@pytest.mark.parametrize("profile", ROUNDED)
def test_a_published_size_in_whole_gib(headers: dict[str, Header], profile: str) -> None:
    assert math.ceil(planned(headers["qwen35moe"], "apex", profile)["file_bytes"] / GIB) == ROUNDED[profile]


# A mixture of ik's types published for Qwen3.5-27B (the same shapes): 12.999 GiB of tensors, 4.151 bpw.
EARLY = "|".join(map(str, [*range(16), *range(18, 64, 3)]))
OWN_MIXTURE = rf"""# attention and SSM
blk\.\d+\.attn_(q|gate|qkv)\.weight=iq4_k
blk\.\d+\.(attn_(k|v|output)|ssm_out)\.weight=iq5_ks
ssm_(alpha|beta)=q8_0

blk\.({EARLY})\.ffn_(down|gate|up)\.weight=iq4_ks
ffn_(down|gate|up)=iq3_k
^(token_embd|output)\.weight$=iq4_k
"""


def test_an_imported_mixture_of_ik_has_its_published_size(headers: dict[str, Header], tmp_path: Path) -> None:
    (tmp_path / "recipe.txt").write_text(OWN_MIXTURE, encoding="utf-8")
    imported = interchange.read(tmp_path / "recipe.txt", "regex", headers["qwen35"])
    assert imported.engine == "ik" and imported.notes == []
    text = json.dumps({"engine": imported.engine, "base": imported.base, "rules": imported.rules})
    recipe = rules.parse(text, "recipe.txt")
    mixture = presets.mixture(headers["qwen35"], recipe.base, imatrix=False)
    resolved = plan.resolve(headers["qwen35"], recipe, mixture, imatrix=False, where="recipe.txt")
    report = plan.report(headers["qwen35"], resolved, "x", None)
    assert round(report["tensor_bytes"] / GIB, 3) == 12.999
    assert round(8 * report["tensor_bytes"] / report["parameters"], 3) == 4.151


LABELS = {
    "Qwen3.6-27B": "qwen35",
    "gemma-4 A4B, 98 experts": "gemma4",
    "Qwen3.5-35B-A3B": "qwen35moe",
    "Darwin-36B-Opus, the same shapes": "qwen35moe",
}
UNITS = {"GB": GB, "GiB": GIB, "MiB": 2**20}


def test_the_table_of_the_documentation_is_what_is_planned(headers: dict[str, Header]) -> None:
    _, _, table = (
        (ROOT / "docs" / "recipes.md")
        .read_text("utf-8")
        .partition("| model | recipe | published | planned |")
    )
    known = {(row[0], row[2].removeprefix("APEX-")): (row[1], row[2], row[3]) for row in PUBLISHED}
    known |= {("qwen35moe", profile): ("apex", profile, {}) for profile in ROUNDED}
    lines = [line.strip("|").split("|") for line in table.split("\n\n")[0].splitlines()[2:]]
    model, seen = "", set()
    for label, recipe, _, planned_cell in ([cell.strip() for cell in line] for line in lines):
        model = LABELS[label] if label else model
        names = [name.partition(" (")[0] for name in recipe.removeprefix("APEX ").split(", ")]
        figures, unit = planned_cell.rsplit(" ", 1)
        sizes = "tensor_bytes" if names[-1] == "tensors alone" else "file_bytes"
        parts = re.split(", (?!\\d{3})", figures)
        names = [name for name in names if (model, name) in known]
        assert names, recipe
        for number, name in enumerate(names):
            template, full, parameters = known[model, name]
            figure = parts[min(number, len(parts) - 1)].replace(",", "")
            size = planned(headers[model], template, full, **parameters)[sizes] / UNITS[unit]
            assert f"{size:.{len(figure.partition('.')[2])}f}" == figure, recipe
            seen.add((model, name))
    assert seen >= known.keys() - {("qwen35moe", name) for name in ("Compact", "I-Compact", *ROUNDED)}


TIERS = (
    "BF16",
    "Q8_0",
    "Q6_K_L",
    "Q6_K",
    "Q5_K_L",
    "Q5_K_M",
    "Q5_K_S",
    "Q4_K_L",
    "Q4_1",
    "Q4_K_M",
    "Q4_K_S",
    "Q4_0",
    "IQ4_NL",
    "IQ4_XS",
    "Q3_K_XL",
    "Q3_K_L",
    "Q3_K_M",
    "IQ3_M",
    "Q3_K_S",
    "IQ3_XS",
    "IQ3_XXS",
    "Q2_K_L",
    "Q2_K",
    "IQ2_M",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
)


def test_every_tier_of_the_sweep(headers: dict[str, Header]) -> None:
    plans = {tier: planned(headers["gemma4"], "preset", tier) for tier in TIERS}
    for large, base in (
        ("Q6_K_L", "Q6_K"),
        ("Q5_K_L", "Q5_K_M"),
        ("Q4_K_L", "Q4_K_M"),
        ("Q3_K_XL", "Q3_K_L"),
        ("Q2_K_L", "Q2_K"),
    ):
        changed = {name for name, kind in plans[large]["rows"].items() if plans[base]["rows"][name] != kind}
        assert changed == {"token_embd.weight"}
        assert plans[large]["rows"]["token_embd.weight"] == "q8_0"
        assert plans[large]["file_type"] == presets.PRESETS[base]
    plain = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ2_M", "IQ1_M")
    sizes = [plans[tier]["file_bytes"] for tier in plain]
    assert sizes == sorted(sizes, reverse=True)


def test_apex_by_role_and_depth(headers: dict[str, Header]) -> None:
    rows = planned(headers["qwen35moe"], "apex", "I-Mini")["rows"]
    experts = [rows[f"blk.{layer}.ffn_up_exps.weight"] for layer in range(40)]
    assert experts == ["q3_K"] * 10 + ["iq2_s"] * 20 + ["q3_K"] * 10
    shared = [rows[f"blk.{layer}.ffn_down_shexp.weight"] for layer in range(40)]
    assert shared == ["q5_K"] * 5 + ["q4_K"] * 30 + ["q5_K"] * 5
    gates = [rows[f"blk.{layer}.attn_gate.weight"] for layer in (0, 2, 4, 36, 38)]
    assert gates == ["q4_K", "q4_K", "q3_K", "q3_K", "q4_K"]
    own = rendered(headers["qwen35moe"], "apex", "x", {"profile": "Quality", "edge": 1, "near": 2})
    assert [rule.layers[:3] for rule in own.rules[:3]] == [(0, 39), (1, 2, 37), (3, 4, 5)]  # type: ignore[index]


def test_apex_with_fused_experts_and_with_an_imatrix(headers: dict[str, Header]) -> None:
    rows = planned(headers["gemma4"], "apex", "Compact")["rows"]
    assert (rows["blk.0.ffn_gate_up_exps.weight"], rows["blk.12.ffn_gate_up_exps.weight"]) == ("q4_K", "q3_K")
    names = ("Quality", "I-Quality", "Mini")
    kinds = [rendered(headers["qwen35moe"], "apex", name, {}).imatrix for name in names]
    assert kinds == ["none", "required", "required"]
    with pytest.raises(QuantmillError, match="the recipe requires an imatrix"):
        planned(headers["qwen35moe"], "apex", "Mini", configured=False)


def test_experts_of_their_own_in_several_parts(tmp_path: Path) -> None:
    header = read_source(shapes.huge(tmp_path / "huge.gguf", layers=3, experts=400))
    assert len(header.tensors) == 3624
    rows = planned(header, "preset", "Q4_K_M")["rows"]
    # llama.cpp counts the layers of an expert by its name
    downs = [{rows[f"blk.{layer}.ffn_down.{expert}.weight"] for expert in range(400)} for layer in range(3)]
    assert downs == [{"q4_K"}, {"q4_K"}, {"q6_K"}]


def test_more_layers_than_llama_cpp_has_are_refused_with_its_words(tmp_path: Path) -> None:
    header = read_source(shapes.huge(tmp_path / "deep.gguf", layers=513, experts=1))
    with pytest.raises(QuantmillError, match=r"deep.gguf: llama.cpp cannot plan .* <= LLAMA_MAX_LAYERS"):
        planned(header, "preset", "Q4_K_M")


CONTRIB = {
    "CD-Q6_K": ("q8_0", "q6_K", "q5_K", "q8_0"),
    "CD-Q5_K_M": ("q6_K", "q5_K", "q4_K", "q6_K"),
    "CD-Q4_K_M": ("q5_K", "q4_K", "q3_K", "q5_K"),
    "CD-Q3_K_L": ("q4_K", "q3_K", "q3_K", "q5_K"),
    "CD-Q3_K_M": ("q4_K", "q3_K", "q3_K", "q5_K"),
    "CD-Q2_K": ("q3_K", "q2_K", "q2_K", "q4_K"),
    "CD-IQ4_K_M": ("iq4_nl", "iq4_xs", "q3_K", "q5_K"),
}


@pytest.mark.parametrize("name", CONTRIB)
def test_contrib_dynamic_by_importance(headers: dict[str, Header], name: str) -> None:
    # the earlier a layer, the more important: 1 TOP, 7 MID, 22 LOW
    rows = planned(headers["gemma4"], "contrib-dynamic", name)["rows"]
    ffn = [rows[f"blk.{layer}.ffn_gate_up_exps.weight"] for layer in range(30)]
    top, mid, low, attention = CONTRIB[name]
    assert ffn == [top] + [mid] * 7 + [low] * 22
    assert {rows[f"blk.{layer}.attn_output.weight"] for layer in range(30)} == {attention}
    assert rows["token_embd.weight"] == "q8_0"
    assert rows["blk.0.ffn_gate.weight"] == top


def test_contrib_mix_leaves_values_and_downs_to_the_base(headers: dict[str, Header]) -> None:
    plain = planned(headers["gemma4"], "preset", "Q4_K_M")["rows"]
    for name, low in (("Q4_K_M_L", "iq4_xs"), ("Q4_K_M_h", "q4_K")):
        rows = planned(headers["gemma4"], "contrib-mix", name)["rows"]
        gates = [rows[f"blk.{layer}.ffn_gate.weight"] for layer in range(30)]
        assert gates == ["q5_K"] + ["q4_K"] * 7 + [low] * 22
        names = [n for n in rows if any(word in n for word in ("attn_v.", "ffn_down", "token_embd"))]
        assert [rows[n] for n in names] == [plain[n] for n in names]


def test_tiers_by_share_or_by_number(headers: dict[str, Header]) -> None:
    parameters = {"tier": "CD-Q6_K", "top": 2, "mid": 0.5}
    made = rendered(headers["gemma4"], "contrib-dynamic", "x", parameters).rules
    assert [len(rule.layers or ()) for rule in made[:3]] == [2, 15, 13]


def test_mfp4_keeps_all_but_the_feed_forward(headers: dict[str, Header]) -> None:
    rows = planned(headers["qwen35"], "mfp4", "MFP4")["rows"]
    ffn = {name: kind for name, kind in rows.items() if re.search(r"\.ffn_\w+\.weight", name)}
    assert set(ffn.values()) == {"nvfp4"}
    scales = {name for name in rows if name.endswith(".scale")}
    assert scales == {name.replace(".weight", ".scale") for name in ffn}
    assert {kind for name, kind in rows.items() if name not in ffn} == {"bf16", "f32"}


def test_nvfp4_on_rows_that_do_not_fit_is_refused() -> None:
    header = read_header(DATA / "tiny-moe.gguf")
    tensors = tuple(
        t._replace(shape=(240, *t.shape[1:])) if t.name == "blk.0.ffn_up_exps.weight" else t
        for t in header.tensors
    )
    narrow = replace(header, tensors=tensors, data="none")
    with pytest.raises(
        QuantmillError, match=r"blk.0.ffn_up_exps.weight: width 240 is no multiple of 64, and nv"
    ):
        planned(narrow, "mfp4", "MFP4")


def test_multi_token_prediction_is_no_edge_and_needs_no_imatrix(headers: dict[str, Header]) -> None:
    known = facts(headers["mtp"])
    assert (known["model"]["layers"], known["model"]["evaluated"][-1]) == (65, 63)
    assert known["edges"](2) == [0, 1, 62, 63]
    rows = planned(headers["mtp"], "preset", "IQ2_XXS")["rows"]
    assert rows["blk.64.ffn_up.weight"] == "q4_K"
    assert rows["blk.63.ffn_up.weight"] == "iq2_xxs"


@pytest.mark.parametrize(
    ("template", "name", "parameters", "message"),
    [
        ("apex", "Nice", {}, "apex.yaml.j2: no profile Nice; it is one of Quality, Balanced"),
        ("apex", "Quality", {}, "the model has no routed experts"),
        ("apex", "Quality", {"edge": "five"}, "'five' is no number of layers at the ends; such as 5"),
        ("apex", "Quality", {"attention_edge": -1}, "-1 is no number of layers at the ends"),
        ("contrib-dynamic", "CD-Q6_K", {"mid": "x"}, "'x' is no number among 2 layers, and no share of them"),
        ("contrib-dynamic", "CD-Q6_K", {"top": 3}, "3 is no number among 2 layers"),
        ("contrib-mix", "Q4_K_M_L", {"mid": -1}, "-1 is no number among 2 layers"),
        ("contrib-mix", "Q4_K_M_L", {"mid": 40.0}, "40.0 is no number among 2 layers"),
        ("contrib-dynamic", "CD-Q9", {}, "no tier CD-Q9; it is one of CD-Q6_K"),
        ("contrib-mix", "Q4_0_L", {}, "no mix for Q4_0; its base is one of Q6_K"),
        ("contrib-mix", "Q4_K_M_X", {}, "no variant X; it is L or h"),
        ("ik", "IQ9_K", {}, "no tier IQ9_K"),
        ("import", "x", {}, "the template needs a file to import; give the recipe `file` and `form`"),
    ],
)
def test_what_a_template_refuses(template: str, name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(QuantmillError, match=message):
        model = "tiny-moe" if template == "apex" and parameters else "tiny-llama"
        rendered(read_header(DATA / f"{model}.gguf"), template, name, parameters)


def test_a_template_that_ranks_layers_needs_importance() -> None:
    header = read_header(DATA / "tiny-llama.gguf")
    text = (ROOT / "recipes" / "contrib-dynamic.yaml.j2").read_text("utf-8")
    with pytest.raises(QuantmillError, match="needs the layers' importance; say what it is made of, such as"):
        render(text, {}, facts(header) | {"recipe": "CD-Q6_K"}, "t")


@pytest.mark.parametrize(
    "spell",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ edges.__globals__ }}",
        "{{ model.update.__self__.__class__ }}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
    ],
)
def test_what_the_sandbox_forbids_is_refused(spell: str) -> None:
    with pytest.raises(QuantmillError, match=r"^t: template error \((SecurityError|OverflowError): "):
        render(f"base: Q4_0\n# {spell}", {}, facts(read_header(DATA / "tiny-moe.gguf")), "t")
