"""The inputs of rules and the files of targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from quantmill.errors import QuantmillError
from quantmill.flow.card_specs import CardSpecs
from quantmill.flow.digests import Digests
from quantmill.flow.inputs import Inputs
from quantmill.flow.paths import Paths
from quantmill.flow.project import Project
from quantmill.flow.specs import Specs
from quantmill.flow.targets import Targets

Flow = Callable[[Project], Any]
MFP4 = {"name": "nvfp4", "template": "mfp4", "scheme": "W4A16"}


def plain(files: Any) -> list[str]:
    """The files whose time counts."""
    return [file for file in files if type(file) is str]


def test_the_source_comes_with_the_report_of_what_made_it(make: Callable[..., Project], flow: Flow) -> None:
    inputs = flow(make())[0]
    assert (list(inputs.source("local")), plain(inputs.source("local"))) == (["model.gguf"], [])
    hub = inputs.source("hub")
    assert list(hub) == ["results/hub/source/model.gguf", "results/hub/source/model.gguf.json"]
    assert plain(hub) == ["results/hub/source/model.gguf.json"]
    converted = inputs.source("checkpoint")
    assert plain(converted) == ["results/checkpoint/source/checkpoint.gguf.json"]


def test_large_files_are_ancient_and_their_reports_are_not(make: Callable[..., Project], flow: Flow) -> None:
    inputs = flow(make())[0]
    pairs = [
        (inputs.calibration_corpus("local"), inputs.calibration_report("local")),
        (inputs.tuning_corpus("local"), inputs.tuning_report("local")),
        (inputs.kld_corpus("local"), inputs.kld_report("local")),
        (inputs.perplexity_corpus("local"), inputs.perplexity_report("local")),
        (inputs.corpora_before("local", "held-out"), inputs.reports_before("local", "held-out")),
        (inputs.imatrix("local"), inputs.imatrix_report("local")),
        (inputs.ranking_imatrix("local", "ranked"), inputs.ranking_imatrix_report("local", "ranked")),
        (inputs.ranking_sensitivity("local", "ranked"), inputs.ranking_sensitivity_report("local", "ranked")),
        (inputs.gguf("local", "plain"), [inputs.facts("local", "plain")]),
        (inputs.ggufs("local"), inputs.gguf_reports("local")),
    ]
    for large, reports in pairs:
        assert large and len(large) == len(reports)
        assert plain(large) == [] and plain(reports) == reports
        assert [file.rpartition(".")[0] for file in large] == [file.rpartition(".")[0] for file in reports]
    users = [
        inputs.texts("held-out"),
        inputs.published_imatrix("imported"),
        inputs.published_sensitivity("imported"),
        inputs.published_curve("imported"),
        inputs.template("local", "plain"),
        inputs.published_recipe("local", "lines"),
        inputs.scores("local", "ranked"),
        inputs.server("local", "source"),
        inputs.problems("local"),
        inputs.tasks("local"),
        inputs.checkpoint_config("checkpoint"),
        inputs.checkpoint_files("checkpoint"),
    ]
    assert all(users) and not any(map(plain, users))


def test_what_a_recipe_does_not_use_is_no_input(make: Callable[..., Project], flow: Flow) -> None:
    inputs = flow(make())[0]
    for method in ("published_recipe", "scores", "ranking_imatrix", "ranking_sensitivity_report"):
        assert getattr(inputs, method)("local", "plain") == []
    assert inputs.imatrix("hub") == inputs.imatrix_report("hub") == []
    assert inputs.corpora_before("local", "calibration") == []


def test_only_what_is_rounded_by_gptq_reads_second_moments(make: Callable[..., Project], flow: Flow) -> None:
    inputs, targets = flow(make(("recipes.0.rounding", "gptq")))[:2]
    assert plain(inputs.moments("local", "plain")) == ["results/local/moments.json"]
    corpus = inputs.calibration("local", "plain")
    assert list(corpus) == ["results/local/corpus/calibration.parquet"] and plain(corpus) == []
    assert plain(inputs.moments_report("local")) == ["results/local/corpus/calibration.json"]
    assert inputs.moments("local", "lines") == inputs.calibration("local", "lines") == []
    assert inputs.probe_moments("local") == inputs.probe_calibration("local") == []
    assert "results/local/moments.json" in targets.described("local")
    assert "results/hub/moments.json" not in targets.all()
    assert inputs.cross("local", "plain") == []
    budgets = [("recipes.3.rounding", "gptq"), ("recipes.4.rounding", "gptq")]
    inputs = flow(make(*budgets))[0]
    assert plain(inputs.probe_moments("local")) == ["results/local/moments.json"]
    assert list(inputs.probe_calibration("local")) == ["results/local/corpus/calibration.parquet"]


def test_what_is_rounded_by_gptaq_is_first_rounded_by_gptq(
    make: Callable[..., Project], flow: Flow, all_specs: Callable[[Project], dict[str, str]]
) -> None:
    crossed = make(("recipes.0.rounding", "gptaq"))
    inputs, targets = flow(crossed)[:2]
    folder = "results/local/cross"
    assert inputs.cross("local", "plain") == [f"{folder}/plain.json"]
    assert list(inputs.cross_gguf("local", "plain")) == [f"{folder}/gguf/local-plain.gguf"]
    assert inputs.cross_facts("local", "plain") == f"{folder}/gguf/local-plain.json"
    assert plain(inputs.moments("local", "plain")) == ["results/local/moments.json"]
    assert inputs.cross("local", "lines") == [] and inputs.probe_moments("local") == []
    assert not [file for file in targets.all() if folder in file]
    ours, fed_back = all_specs(crossed), all_specs(make(("recipes.0.rounding", "gptq")))
    assert {name for name in ours if ours[name] != fed_back.get(name)} == {
        *("cross local plain", "gptq local plain", "quantized local plain", "kld local plain"),
        "checked local plain",
        *("perplexity local plain", "speed local plain", "plan local plain", "memory local", "card local"),
        *("humaneval local plain", "served local plain", "tasks local plain", "nearest local plain"),
        *("nearest_kld local plain", "parts local", "lock local"),
    } & set(ours)


def test_the_same_types_rounded_to_nearest_are_measured_and_not_published(
    make: Callable[..., Project], flow: Flow
) -> None:
    inputs, targets, _, cards = flow(make(("recipes.0.rounding", "gptq")))
    facts, kld = "results/local/nearest/gguf/local-plain.json", "results/local/nearest/plain.kld.json"
    assert targets.nearest("local") == [facts, kld] and {facts, kld} <= set(targets.results("local"))
    assert flow(make())[1].nearest("local") == []
    assert (list(inputs.nearest_gguf("local", "plain")), plain(inputs.nearest_gguf("local", "plain"))) == (
        ["results/local/nearest/gguf/local-plain.gguf"],
        [],
    )
    assert inputs.nearest_facts("local", "plain") == facts
    assert "nearest" not in cards.publish()
    assert not [file for file in targets.measured("local") if "nearest" in file]


def test_a_recipe_of_gptq_leaves_the_specs_of_all_others_and_quantizes_nearest_as_ever(
    make: Callable[..., Project], all_specs: Callable[[Project], dict[str, str]]
) -> None:
    before, after = all_specs(make()), all_specs(make(("recipes.0.rounding", "gptq")))
    changed = {name for name in before if before[name] != after[name]}
    assert {name for name in changed if not name.endswith(" plain")} == {
        "card local",
        "memory local",
        "lock local",
        "parts local",
    }
    ours, nearest = (
        json.loads(specs[f"{kind} local plain"])
        for specs, kind in ((before, "quantized"), (after, "nearest"))
    )
    assert nearest.pop("from").keys() == ours.pop("from").keys() and nearest == ours
    split = all_specs(make(("recipes.0.rounding", "gptq"), ("recipes.0.split", {"max": "1 MB"})))
    assert split["nearest local plain"] == after["nearest local plain"] != split["quantized local plain"]


def test_a_size_is_checked_before_the_sensitivity_is_measured(
    make: Callable[..., Project], flow: Flow
) -> None:
    inputs = flow(make())[0]
    assert inputs.feasibility("local", "sized") == ["results/local/reach/sized.json"]
    assert inputs.feasibility("imported", "imported-fit") == []


def test_the_source_is_measured_first_and_the_divergence_before_the_perplexity(
    make: Callable[..., Project], flow: Flow
) -> None:
    inputs = flow(make())[0]
    assert inputs.noise_floor("local", "plain") == ["results/local/bench/source/kld.json"]
    assert inputs.noise_floor("local", "source") == []
    assert inputs.divergence("local", "plain") == ["results/local/bench/plain/kld.json"]
    assert flow(make(("bench.kld", None)))[0].divergence("local", "plain") == []
    other = flow(
        make(("corpora.more", {"sources": [{"name": "x", "path": "other"}]}), ("bench.kld.corpus", "more"))
    )
    assert other[0].divergence("local", "plain") == []


def test_a_split_file_is_a_folder(make: Callable[..., Project], flow: Flow) -> None:
    inputs = flow(make(("recipes.0.split", {"max": "1 MB"})))[0]
    assert inputs.gguf("local", "plain") == ["results/local/gguf/local-plain"]
    assert inputs.gguf("local", "lines") == ["results/local/gguf/local-lines.gguf"]


def test_what_is_compared_with(make: Callable[..., Project], flow: Flow) -> None:
    others = [
        {"name": "table", "csv": "figures.csv", "source": "there"},
        {"name": "results", "results": "measured"},
        {"name": "here", "model": "hub"},
    ]
    inputs = flow(make(("models.local.card.same_size", others), ("models.hub.bench", {"speed": {}})))[0]
    assert inputs.compared("local") == [
        "figures.csv",
        "measured/bench/Q4/kld.json",
        "measured/gguf/measured-Q4.json",
        "results/hub/gguf/hub-Q8_0.json",
        "results/hub/bench/Q8_0/speed.json",
    ]


def test_every_target_asks_for_existing_rules_files(make: Callable[..., Project], flow: Flow) -> None:
    targets = flow(make())[1]
    everything = set(targets.all())
    for name in ("cards", "quants", "plans", "checkpoints", "imatrices", "sensitivities", "published"):
        files = getattr(targets, name)()
        assert files and set(files) <= everything, name
    assert len(everything) == len(targets.all())
    assert targets.imatrices()[:4] == [
        "results/local/check.json",
        "results/hub/check.json",
        "results/packaged/check.json",
        "results/checkpoint/check.json",
    ]


def test_the_files_of_one_model(make: Callable[..., Project], flow: Flow) -> None:
    project = make(("models.packaged.bench", {"speed": {}, "humaneval": {"problems": "problems.jsonl"}}))
    results = flow(project)[1].results("packaged")
    assert [file.removeprefix("results/packaged/") for file in results] == [
        "check.json",
        "manifest.tsv",
        "model.json",
        "recipes/Q8_0.yaml",
        "plans/Q8_0.tsv",
        "plans/Q8_0.json",
        "memory.json",
        "gguf/packaged-Q8_0.json",
        "checks/Q8_0.json",
        "gguf/packaged-Q8_0.gguf",
        "bench/source/speed.json",
        "bench/source/humaneval.json",
        "bench/Q8_0/speed.json",
        "bench/Q8_0/humaneval.json",
        "bench/source/humaneval.jsonl",
        "bench/Q8_0/humaneval.jsonl",
        "lock.json",
        "statements",
        "card/README.md",
        "card/index.html",
        "card/withheld.json",
        "card/modelfiles",
        "card/plots/bits.svg",
        "card/plots/bits-dark.svg",
        "card/plots/size.svg",
        "card/plots/size-dark.svg",
    ]


def test_a_converted_source_is_a_result_where_it_is_kept(make: Callable[..., Project], flow: Flow) -> None:
    source = "results/checkpoint/source/checkpoint.gguf"
    assert source in flow(make())[1].results("checkpoint")
    assert source not in flow(make(("models.checkpoint.source.keep", False)))[1].results("checkpoint")


def test_the_exports_of_a_checkpoint(make: Callable[..., Project], flow: Flow) -> None:
    folder = "results/checkpoint/checkpoint/checkpoint-nvfp4"
    files = [f"{folder}/config.json", f"{folder}/README.md", f"{folder}.json"]
    assert flow(make())[1].checkpoints() == ["results/checkpoint/activations.json", *files]
    assert flow(make(("models.checkpoint.recipes.1.scheme", "W4A16")))[1].checkpoints() == files


def test_what_generates_needs_llama_cpp(make: Callable[..., Project], flow: Flow) -> None:
    _, targets, specs, _ = flow(
        make(("models.local.recipes", [{"name": "k", "template": "ik", "base": "IQ4_K"}]))
    )
    measured = [file.removeprefix("results/local/bench/") for file in targets.measured("local")]
    assert [file for file in measured if "humaneval" in file] == ["source/humaneval.json"]
    assert "k/kld.json" in measured and "source-ik/speed.json" in measured
    with pytest.raises(QuantmillError, match="k of local is of engine ik, in which nothing generates"):
        specs.humaneval("local", "k")


def test_publishing_needs_a_repository(make: Callable[..., Project], flow: Flow) -> None:
    with pytest.raises(QuantmillError, match="no repository to publish in; add publish: "):
        flow(make(("publish", {})))[3].publish()


def test_a_lock_has_the_corpora_that_files_are_made_with(make: Callable[..., Project], flow: Flow) -> None:
    targets = flow(make())[1]
    assert targets.locked_corpora("local") == ["calibration", "tuning"]  # types are chosen by sensitivity
    assert targets.locked_corpora("hub") == targets.locked_corpora("imported") == []
    plain_recipe = flow(make(("models.local.recipes", ["Q8_0"])))[1]
    assert plain_recipe.locked_corpora("local") == ["calibration"]
    assert not [file for file in plain_recipe.locked("local") if "bench" in file or "held-out" in file]


def test_proof_is_what_the_config_asks_for(make: Callable[..., Project], flow: Flow) -> None:
    assert flow(make())[1].proof("local") == ["results/local/lock.json", "results/local/statements"]
    targets = flow(make(("publish.sign", "key.pub"), ("publish.verify", "all")))[1]
    assert [file.rpartition("/")[2] for file in targets.proof("local")] == [
        *("lock.json", "statements", "lock.json.sig", "verify.json"),
    ]
    assert targets.verified("hub") == []  # it has a publish of its own
    assert len(targets.sources()) == len(targets.project.with_recipes)
    assert "results/hub/lock.json" in targets.verify()


def test_the_command_line_says_how_it_is_verified(make: Callable[..., Project]) -> None:
    project = make(("models.local.publish", {"verify": "sample"}))
    specs = Specs(Digests(project))
    targets = Targets(Inputs(Paths(project), lambda files: files))
    asked = json.loads(CardSpecs(specs, targets).verify())["config"]["models"]
    assert (asked["local"], asked["hub"]) == ("sample", "all")
    said = json.loads(CardSpecs(specs, targets, verify="all").verify())["config"]["models"]
    assert set(said.values()) == {"all"}
    exported = Project({"models": {"x": {"source": {"checkpoint": "checkpoint"}}}, "recipes": [MFP4]})
    specs = Specs(Digests(exported))
    targets = Targets(Inputs(Paths(exported), lambda files: files))
    with pytest.raises(QuantmillError) as error:
        CardSpecs(specs, targets).verify()
    assert str(error.value) == (
        "--config: no model has a recipe that makes a GGUF; there is nothing to verify"
    )


def test_a_key_that_is_none_is_refused(make: Callable[..., Project]) -> None:
    for changes, place in (
        ((("publish.sign", "gone"),), "publish.sign"),
        ((("models.hub.publish", {"sign": "gone"}),), "models.hub.publish.sign"),
    ):
        with pytest.raises(QuantmillError, match=rf"^--config: {place}: no such file gone; name an ssh key"):
            Digests(make(*changes)).check_keys()
