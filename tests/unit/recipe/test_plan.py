"""Plans: each tensor's type and why, exact sizes, and what is refused before work starts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
import native
from commands import command
from quantmill.engine import dryrun
from quantmill.engine.dryrun import dry_run, parse_log
from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.ggufio import encode_u32, read_header, serialize
from quantmill.formats.plan import PlanRow, read_plan, write_plan
from quantmill.formats.types import FED_BACK, fed_back, takes_feedback, writable
from quantmill.model.header import read_source
from quantmill.recipe import presets, rules
from quantmill.recipe.interchange import lines_of
from quantmill.recipe.plan import Plan, check_rounding, report, resolve, use_imatrix

DATA = Path(__file__).parents[2] / "data"
LLAMA, MOE = DATA / "tiny-llama.gguf", DATA / "tiny-moe.gguf"
FACTS = {"file": "m-imatrix.gguf", "dataset": "calibration"}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama whose rows (576) do not fit blocks of 256, in a path with spaces."""
    return models.write_llama(tmp_path_factory.mktemp("a folder") / "na rrow.gguf", width=576)


def plan_of(model: Path, text: str, *, imatrix: bool = False) -> Plan:
    recipe = rules.parse(text, "r.yaml")
    header = read_source(model)
    mixture = presets.mixture(header, recipe.base, imatrix=imatrix)
    return resolve(header, recipe, mixture, imatrix=imatrix, where="r.yaml")


def by_name(plan: Plan) -> dict[str, PlanRow]:
    return {row.name: row for row in plan.rows}


def test_a_preset_is_llama_cpps_own_mixture_with_its_fallbacks(narrow: Path) -> None:
    plan = plan_of(narrow, "base: Q4_K_M")
    rows = by_name(plan)
    assert rows["blk.0.attn_q.weight"].type == "q5_0"
    assert rows["blk.0.attn_q.weight"].reason == (
        "Q4_K_M's own mixture; fallback from q4_K: width 576 is no multiple of 256"
    )
    assert rows["blk.0.attn_norm.weight"].reason == "never quantized"
    assert plan.fallbacks["blk.0.attn_q.weight"] == "q4_K"
    assert [row.name for row in plan.rows][:3] == [
        "output_norm.weight",
        "token_embd.weight",
        "blk.0.attn_k.weight",
    ]


def test_rules_are_laid_over_the_mixture_and_shift_nothing_else() -> None:
    base = by_name(plan_of(LLAMA, "base: Q4_K_M"))
    text = (
        "base: Q4_K_M\nrules:\n  - {role: ffn_down, layers: [0], type: q3_K, why: a test}\n"
        "  - {role: output, type: bf16}"
    )
    rows = by_name(plan_of(LLAMA, text))
    changed = {name for name in rows if rows[name].type != base[name].type}
    assert changed == {"blk.0.ffn_down.weight", "output.weight"}
    assert rows["blk.0.ffn_down.weight"].reason == "rule 1: a test"
    assert rows["blk.1.ffn_down.weight"].reason == "Q4_K_M's own mixture"
    assert rows["output.weight"].type == "bf16"


def test_one_type_for_all_and_fallbacks_of_rules(narrow: Path) -> None:
    text = "base: q5_K\nrules: [{role: attn_v, type: q6_K}, {role: token_embd, type: f16}]"
    rows = by_name(plan_of(narrow, text))
    assert {row.type for row in rows.values()} == {"f32", "f16", "q5_1", "q8_0"}
    assert rows["blk.0.attn_v.weight"].reason == (
        "rule 1; fallback from q6_K: width 576 is no multiple of 256"
    )
    assert rows["blk.0.attn_k.weight"].reason == (
        "q5_K for all; fallback from q5_K: width 576 is no multiple of 256"
    )


def test_a_rule_without_fallback_names_rule_and_tensor(narrow: Path) -> None:
    with pytest.raises(
        QuantmillError, match=r"^r.yaml: rule 1: blk.0.attn_v.weight: .* q1_0 has no fallback"
    ):
        plan_of(narrow, "base: Q8_0\nrules: [{role: attn_v, type: q1_0}]")


@pytest.mark.parametrize(("preset", "imatrix"), [("Q4_K_M", False), ("Q2_K_S", True), ("F16", True)])
def test_sizes_are_exact_and_types_llama_quantizes_own(tmp_path: Path, preset: str, imatrix: bool) -> None:
    source = models.write_llama(tmp_path / "m.gguf", width=256, layers=1, tied=False)
    npz, out = None, tmp_path / "out.gguf"
    plan = plan_of(source, f"base: {preset}", imatrix=imatrix)
    if imatrix:
        npz = tmp_path / "imatrix.npz"
        wide = {row.name: np.ones(row.shape[0], np.float32) for row in plan.rows if len(row.shape) == 2}
        np.savez(npz, **wide)
    native.quantize(source, out, presets.PRESETS[preset], None, npz)
    made = read_header(out)
    assert [(t.name, t.type, t.bytes) for t in made.tensors] == [(r.name, r.type, r.bytes) for r in plan.rows]
    # the tests' own run names no imatrix in the header, so the size is compared without
    assert report(read_header(source), plan, "R", None)["file_bytes"] == out.stat().st_size


def test_the_imatrix_is_counted_in_the_metadata() -> None:
    header = read_header(LLAMA)
    plan = plan_of(LLAMA, "base: Q4_K_M", imatrix=True)
    with_it, without = report(header, plan, "R", FACTS), report(header, plan, "R", None)
    keys = ("quantize.imatrix.file", "quantize.imatrix.dataset")
    keys += ("quantize.imatrix.entries_count", "quantize.imatrix.chunks_count")
    added = sum(8 + len(key) + 4 for key in keys) + 8 + len(FACTS["file"]) + 8 + len(FACTS["dataset"]) + 8
    # each header is padded to 32 bytes
    assert abs(with_it["metadata_bytes"] - without["metadata_bytes"] - added) < 32
    assert with_it["tensor_bytes"] == without["tensor_bytes"]


def test_the_report() -> None:
    header = read_header(MOE)
    numbers = report(header, plan_of(MOE, "base: Q4_K_M\nrules: [{role: output, type: q8_0}]"), "R", None)
    assert numbers["file_bytes"] == numbers["metadata_bytes"] + numbers["tensor_bytes"]
    assert numbers["parameters"] == sum(t.elements for t in header.tensors)
    assert numbers["bpw"] == pytest.approx(numbers["file_bytes"] * 8 / numbers["parameters"])
    assert sum(entry["tensors"] for entry in numbers["by_type"]) == numbers["tensors"] == 38
    sizes = [entry["bytes"] for entry in numbers["by_type"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {"role": "output", "layer": -1, "bpw": 8.5, "type": "q8_0"} in numbers["bits"]
    assert not any(entry["role"] == "norm" for entry in numbers["bits"])
    assert (numbers["requantized"], numbers["fallbacks"], numbers["warnings"]) == (False, [], [])
    assert (numbers["base"], numbers["file_type"], numbers["rules"]) == ("Q4_K_M", 15, 1)


def test_what_each_role_got() -> None:
    text = "base: q4_K\nrules: [{role: ffn_down_exps, layers: [0], type: q8_0}]"
    roles = report(read_header(MOE), plan_of(MOE, text), "R", None)["by_role"]
    down = next(entry for entry in roles if entry["role"] == "ffn_down_exps")
    assert (down["tensors"], down["least"], down["most"], down["bpw"]) == (2, 4.5, 8.5, 6.5)
    assert down["types"] == {"q4_K": 1, "q8_0": 1}
    assert roles == sorted(roles, key=lambda entry: -entry["bytes"])


def test_a_tensor_without_a_known_role_is_named(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    strange = [t.name.replace("ffn_gate", "ffn_sideways") for t in header.tensors]
    rows = [(name, t.type_id, t.shape) for name, t in zip(strange, header.tensors, strict=True)]
    path = tmp_path / "x.gguf"
    path.write_bytes(serialize(header.kv, rows))
    plan = plan_of(path, "base: q8_0")
    count = sum("ffn_sideways" in name for name in strange)
    assert f"{count} tensors have no known role, such as blk.0.ffn_sideways.weight" in plan.warnings[0]


def test_a_recipe_of_ik_is_planned() -> None:
    plan = plan_of(LLAMA, "engine: ik\nbase: iq4_kt\nrules: [{role: output, type: q6_0}]")
    rows = by_name(plan)
    assert (rows["output.weight"].type, rows["blk.0.ffn_up.weight"].type) == ("q6_0", "iq4_kt")
    columns, count = rows["blk.0.ffn_up.weight"].shape
    assert rows["blk.0.ffn_up.weight"].bytes == count * (columns // 2 + 4)
    numbers = report(read_header(LLAMA), plan, "R", None)
    assert (numbers["engine"], numbers["file_type"]) == ("ik", 153)
    words = "mainline llama.cpp cannot load this file: it has ik_llama.cpp's own iq4_kt, q6_0"
    assert numbers["warnings"] == [words]


@pytest.mark.parametrize("kind", ["iq1_kt", "iq2_kt"])
def test_types_of_ik_that_need_an_imatrix(kind: str) -> None:
    text = f"engine: ik\nbase: {kind}\nrules: [{{role: [output, token_embd], type: q6_0}}]"
    with pytest.raises(QuantmillError, match=f"{kind} needs an imatrix"):
        plan_of(LLAMA, text)


def test_a_plan_is_executed_by_its_own_engine_alone(tmp_path: Path) -> None:
    done = run(tmp_path, LLAMA, "engine: ik\nbase: iq4_k", {"recipe": "R", "imatrix": None})
    assert done.returncode == 0, done.stderr
    spec = '{"config":{"imatrix":null},"engine":"x"}'
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "quantmill.quantize.write",
            "--spec",
            spec,
            "--model",
            LLAMA,
            "--manifest",
            "m.tsv",
            "--plan",
            tmp_path / "p.tsv",
            "--report",
            tmp_path / "p.json",
            "--imatrix",
            "--gguf",
            tmp_path / "x.gguf",
            "--facts",
            tmp_path / "x.json",
            "--store",
            tmp_path / "store",
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the recipe's engine is ik, and its file was to be made by mainline" in done.stderr
    assert not list(tmp_path.glob("x.*"))


def test_a_quantized_source_is_said_aloud_and_equal_types_are_copied(tmp_path: Path) -> None:
    source = models.write_llama(tmp_path / "m.gguf", width=256, quantized="q8_0")
    header = read_header(source)
    plan = plan_of(source, "base: Q4_0\nrules: [{role: attn_q, type: q8_0, why: keep}]")
    rows = by_name(plan)
    assert rows["blk.1.attn_q.weight"].reason == "rule 1: keep; already q8_0"
    numbers = report(header, plan, "R", None)
    assert numbers["requantized"]
    assert numbers["source_types"] == {"f32": 5, "q8_0": 15}
    assert any("quantized again" in warning for warning in numbers["warnings"])
    copied = report(header, plan_of(source, "base: Q8_0"), "R", None)
    assert (copied["requantized"], copied["warnings"]) == (False, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: IQ2_XS", r"blk.0.attn_k.weight \(IQ2_XS's own mixture\): iq2_xs needs an imatrix; configure"),
        ("base: Q2_K_S", "q2_K needs an imatrix"),
        ("base: Q2_K_S\nimatrix: none", "q2_K needs an imatrix; set the recipe's `imatrix`"),
        (
            "base: Q4_K_M\nrules: [{role: ffn_up, type: iq3_xxs, why: small}]",
            r"blk.0.ffn_up.weight \(rule 1: small\): iq3_xxs needs an imatrix",
        ),
    ],
)
def test_a_type_that_needs_an_imatrix_without_one(text: str, message: str) -> None:
    with pytest.raises(QuantmillError, match=f"^r.yaml: .*{message}"):
        plan_of(LLAMA, text)


def test_embeddings_and_output_need_no_imatrix() -> None:
    plan = plan_of(LLAMA, "base: Q2_K\nrules: [{role: [token_embd, output], type: iq2_s}]")
    assert by_name(plan)["output.weight"].type == "iq2_s"
    assert by_name(plan_of(LLAMA, "base: IQ2_XS", imatrix=True))["blk.0.ffn_up.weight"].type == "iq2_xs"


@pytest.mark.parametrize("imatrix", [False, True])
def test_a_type_that_no_quantizer_writes_without_one_is_refused_for_them(imatrix: bool) -> None:
    """The stage that quantizes would refuse it, after hours: ggml's quantizer aborts."""
    text = "base: Q4_K_M\nrules: [{role: output, type: iq2_xs}]"
    message = (
        r"r.yaml: output.weight \(rule 1\): iq2_xs needs importance values, which it never has; choose an"
    )
    with pytest.raises(QuantmillError, match=message):
        plan_of(LLAMA, text, imatrix=imatrix)


def test_multi_token_prediction_layers_have_no_imatrix() -> None:
    header = read_header(LLAMA)
    kv = dict(header.kv) | {"llama.nextn_predict_layers": encode_u32(1)}
    recipe = rules.parse("base: IQ2_XS", "r.yaml")
    mixture = presets.mixture(header, recipe.base, imatrix=True)
    with_mtp = type(header)(header.path, header.shards, header.tensors, kv)
    rows = by_name(resolve(with_mtp, recipe, mixture, imatrix=True, where="r.yaml"))
    assert rows["blk.0.ffn_up.weight"].type == "iq2_xs"
    pinned = rows["blk.1.ffn_up.weight"]
    assert (pinned.type, pinned.reason) == ("q4_K", "IQ2_XS's own mixture; no importance values for iq2_xs")
    recipe = rules.parse("base: IQ2_XS\nrules: [{role: attn_k, type: iq2_xxs}]", "r.yaml")
    with pytest.raises(
        QuantmillError, match=r"blk.1.attn_k.weight .* which no multi-token prediction layer has"
    ):
        resolve(with_mtp, recipe, mixture, imatrix=True, where="r.yaml")
    measured = by_name(resolve(with_mtp, recipe, mixture, imatrix=True, where="r.yaml", mtp=True))
    assert measured["blk.1.attn_k.weight"].type == "iq2_xxs"
    assert measured["blk.1.ffn_up.weight"].type == "iq2_xs"


def test_whether_the_imatrix_is_used() -> None:
    required, none = (rules.parse(f"base: Q4_0\nimatrix: {x}", "r") for x in ("required", "none"))
    assert use_imatrix(required, True, "r.yaml")
    assert not use_imatrix(none, True, "r.yaml")
    with pytest.raises(QuantmillError, match=r"^r.yaml: the recipe requires an imatrix; configure"):
        use_imatrix(required, False, "r.yaml")


def test_an_imatrix_changes_some_mixtures(tmp_path: Path) -> None:
    source = models.write_llama(tmp_path / "m.gguf", width=64, layers=8)
    plans = [by_name(plan_of(source, "base: Q4_0", imatrix=imatrix)) for imatrix in (False, True)]
    assert [plan["blk.0.ffn_down.weight"].type for plan in plans] == ["q4_0", "q4_1"]


def test_a_plan_equal_to_its_bases_is_refused_unless_all_rules_are_optional() -> None:
    text = "base: Q4_K_M\nrules: [{role: output, type: q6_K}]"
    with pytest.raises(
        QuantmillError, match=r"^r.yaml: the plan equals that of its base Q4_K_M .* use Q4_K_M"
    ):
        plan_of(LLAMA, text)
    plan = plan_of(LLAMA, text.replace("q6_K}", "q6_K, optional: true}"))
    assert plan.warnings == ("the plan equals that of its base Q4_K_M on this model: no rule changes a type",)


def test_a_plan_is_read_back(tmp_path: Path, narrow: Path) -> None:
    plan = plan_of(narrow, "base: Q4_K_M\nrules: [{role: attn_q, type: f16, why: 'a\t\nb'}]")
    write_plan(tmp_path / "p.tsv", plan.rows)
    assert tuple(read_plan(tmp_path / "p.tsv")) == plan.rows


def run(folder: Path, model: Path, text: str, config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    recipe = folder / "r.yaml"
    recipe.write_text(text, encoding="utf-8")
    files = {"recipe": recipe, "plan": folder / "p.tsv", "report": folder / "p.json", "log": folder / "p.log"}
    words = command("recipe.plan", json.dumps({"config": config}), model=model, **files)
    return subprocess.run(words, capture_output=True, text=True)


def test_the_command(tmp_path: Path, narrow: Path) -> None:
    done = run(tmp_path, narrow, "base: Q4_K_M", {"recipe": "R", "imatrix": FACTS | {"chunks": 9}})
    assert (done.returncode, done.stderr) == (0, "")
    numbers = read_json(tmp_path / "p.json")
    assert (numbers["recipe"], numbers["imatrix"], numbers["tensors"]) == (
        "R",
        True,
        len(read_plan(tmp_path / "p.tsv")),
    )
    assert "warning: " in (tmp_path / "p.log").read_text("utf-8")


def test_a_plan_says_how_its_weights_are_rounded(tmp_path: Path) -> None:
    config = {"recipe": "R", "imatrix": None}
    assert run(tmp_path, LLAMA, "base: Q4_K_M", config).returncode == 0
    nearest, rows = read_json(tmp_path / "p.json"), (tmp_path / "p.tsv").read_bytes()
    assert run(tmp_path, LLAMA, "base: Q4_K_M", config | {"rounding": "gptq"}).returncode == 0
    assert read_json(tmp_path / "p.json") == nearest | {"rounding": "gptq"}
    assert (tmp_path / "p.tsv").read_bytes() == rows
    done = run(tmp_path, LLAMA, "base: tq2_0", config | {"rounding": "gptq"})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "r.yaml: tq2_0 has no grid to which errors can be fed back (" in done.stderr
    assert "; choose iq2_s, iq2_xs, iq2_xxs, iq3_s, iq3_xxs, iq4_nl, iq4_xs, mxfp4, " in done.stderr
    assert done.stderr.endswith(", or give the recipe rounding: nearest\n")


def test_what_is_not_quantized_anew_needs_no_grid() -> None:
    def row(source_type: str, kind: str) -> PlanRow:
        return PlanRow("blk.0.ffn_up.weight", "ffn_up", 0, (256, 2), source_type, kind, 1, "")

    whole = [row("tq2_0", "tq2_0"), row("f16", "bf16"), row("f16", "f32"), row("f16", "q4_K")]
    check_rounding(whole, "mainline", "r")
    check_rounding([*whole, row("f16", "iq3_k")], "ik", "r")
    with pytest.raises(QuantmillError, match=r"^r: tq2_0 has no grid .*\(blk\.0\.ffn_up\.weight\); choose "):
        check_rounding([row("f16", "tq2_0")], "mainline", "r")
    for kind in sorted({"iq4_kss", "iq2_kl", "iq3_kt", "q8_KV", "nvfp4"}):
        with pytest.raises(
            QuantmillError, match=rf"^r: {kind} has no grid .*; choose iq2_k, iq2_ks, iq2_s, "
        ):
            check_rounding([row("f16", kind)], "ik", "r")
    kinds = ("q4_K", "f16", "tq1_0", "tq2_0", "iq4_ks")
    assert {kind for kind in kinds if takes_feedback(kind, "mainline")} == {"q4_K", "f16"}
    assert {kind for kind in kinds if takes_feedback(kind, "ik")} == {"q4_K", "f16", "iq4_ks"}
    assert fed_back("mainline") == FED_BACK and FED_BACK - fed_back("ik") == {"nvfp4"}
    assert all(fed_back(engine) <= writable(engine) for engine in ("mainline", "ik"))


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    config = {"recipe": "R", "imatrix": None}
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(LLAMA.read_bytes()[:-1000])
    no_rule = "base: Q4_K_M\nrules: [{role: ssm_out, type: q8_0}]"
    for model, recipe, message in (
        (LLAMA, no_rule, "rule 1: matches no tensor"),
        (LLAMA, "base: IQ1_S", "needs an imatrix"),
        (LLAMA, "base: Q4_K_M\nimatrix: required", "requires an imatrix"),
        (broken, "base: Q4_K_M", "truncated: 1,000 of"),
    ):
        done = run(tmp_path, model, recipe, config)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert message in done.stderr
        assert not list(tmp_path.glob("p.[tj]s*"))


def test_what_llama_cpp_says_is_passed_on(tmp_path: Path) -> None:
    header = read_header(LLAMA)
    kv = {key: value for key, value in header.kv.items() if key != "llama.embedding_length"}
    path = tmp_path / "lacks a key.gguf"
    tensors = [(t.name, t.type_id, t.shape) for t in header.tensors]
    path.write_bytes(serialize(kv, tensors))
    with path.open("ab") as file:
        file.truncate(10 << 20)  # the data is a hole
    with pytest.raises(QuantmillError, match=r"llama.cpp cannot plan this model: .*llama.embedding_length"):
        dry_run(path, 15, imatrix=False)
    assert len(dry_run(LLAMA, 15, imatrix=False).types) == len(tensors)
    with pytest.raises(QuantmillError, match="invalid output file type 39"):
        dry_run(LLAMA, 39, imatrix=False)


def test_a_native_abort_is_an_error_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, -6, "", "ggml.c:1: GGML_ASSERT(x) failed\n")

    monkeypatch.setattr(dryrun.subprocess, "run", run)
    with pytest.raises(
        QuantmillError, match=r"this model: ended by SIGABRT \(ggml.c:1: GGML_ASSERT\(x\) failed\)"
    ):
        dry_run(LLAMA, 15, imatrix=False)


LOG = """
[   1/   3] token_embd.weight                    - [  576, 49152,     1,     1], type =   q8_0, size =   28.688 MiB
warning: blk.0.attn_q.weight                  - ncols    576 not divisible by 256 (required for type    q4_K) -> falling back to    q5_0
[   2/   3] blk.0.attn_q.weight                  - [  576,   576,     1,     1], type =   q4_1, size =     0.20 MiB ->     0.22 MiB (q5_0)
[   3/   3] a name - with spaces                 - [  576,   576,     1,     1], type =    f32, size =     1.27 MiB ->     0.63 MiB (f16)
"""  # noqa: E501


def test_the_log_of_a_dry_run_is_read() -> None:
    types, fallbacks = parse_log(LOG)
    assert types == {
        "token_embd.weight": "q8_0",
        "blk.0.attn_q.weight": "q5_0",
        "a name - with spaces": "f16",
    }
    assert fallbacks == {"blk.0.attn_q.weight": "q4_K"}
    with pytest.raises(QuantmillError, match="tells of 2 tensors where 3 were expected"):
        parse_log("\n".join(LOG.splitlines()[:4]))
    with pytest.raises(QuantmillError, match="tells of 0 tensors"):
        parse_log("another format")


def test_nvfp4_gets_its_per_tensor_scales_where_llama_cpp_applies_them() -> None:
    text = "base: F16\nrules: [{role: [ffn_up_exps, ffn_down_shexp, token_embd], type: nvfp4}]"
    plan = plan_of(MOE, text)
    rows = by_name(plan)
    scales = {name: (row.shape, row.bytes) for name, row in rows.items() if row.made}
    expected = {f"blk.{n}.ffn_up_exps.scale": ((4,), 16) for n in (0, 1)}
    assert scales == expected | {f"blk.{n}.ffn_down_shexp.scale": ((1,), 4) for n in (0, 1)}
    assert rows["blk.0.ffn_up_exps.scale"].reason == "second scale of its weight"
    assert plan.warnings[-1] == (
        "1 nvfp4 tensors, such as token_embd.weight, have no per-tensor scale, and so a larger error:"
        " llama.cpp applies none there"
    )
    assert not [line for line in lines_of(plan.rows, "regex") if "scale" in line]
    bare = plan_of(MOE, f"scales: false\n{text}")
    assert not [row for row in bare.rows if row.made] and not bare.warnings
    whole, less = (report(read_source(MOE), each, "x", None) for each in (plan, bare))
    assert whole["parameters"] == less["parameters"] and whole["source_types"] == less["source_types"]
    assert whole["tensors"] == less["tensors"] + 4 and whole["file_bytes"] > less["file_bytes"]


def test_scales_of_a_recipe_are_written_and_read() -> None:
    recipe = rules.parse("base: nvfp4\nscales: false", "r.yaml")
    assert not recipe.scales and rules.parse(rules.dump(recipe), "r.yaml") == recipe
    assert "scales" not in rules.dump(rules.parse("base: nvfp4", "r.yaml"))
    with pytest.raises(QuantmillError, match=r"field scales is 'no'; it takes true or false"):
        rules.parse("base: nvfp4\nscales: 'no'", "r.yaml")
