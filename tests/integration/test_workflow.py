"""Snakemake itself, over a tiny model: what is built, what is refused, and what a second config does."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout

LEAN: dict[str, Any] = {"imatrix": None, "sensitivity": None, "bench": {}, "recipes": ["Q8_0"]}
CARD = "write_card"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout, in a folder whose name has a space; nothing built."""
    return Checkout.build(tmp_path / "a checkout")


def test_a_lean_config_ends_with_a_card(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.configure(lambda config: config.update(LEAN, results="the results"))
    checkout.run()
    made = {
        str(p.relative_to(checkout.folder / "the results" / "tiny")) for p in checkout.made("the results")
    }
    assert {
        "check.json",
        "manifest.tsv",
        "model.json",
        "recipes/Q8_0.yaml",
        "plans/Q8_0.tsv",
        "plans/Q8_0.json",
        "memory.json",
        "gguf/tiny-Q8_0.gguf",
        "gguf/tiny-Q8_0.json",
        "checks/Q8_0.json",
        "lock.json",
        "statements/tiny-Q8_0.gguf.derivation.json",
        "statements/.snakemake_timestamp",
        "card/README.md",
        "card/index.html",
        "card/withheld.json",
        "card/modelfiles/Modelfile.Q8_0",
        "card/modelfiles/.snakemake_timestamp",
        "card/plots/bits.svg",
        "card/plots/bits-dark.svg",
        "card/plots/size.svg",
        "card/plots/size-dark.svg",
    } == made
    assert "Q8_0" in (checkout.folder / "the results" / "tiny" / "card" / "README.md").read_text("utf-8")
    assert checkout.due() == set()
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # Snakemake's report has all that it needs
    for report in ("report.zip", "report.html"):
        checkout.run("--report", report)
        assert (checkout.folder / report).stat().st_size > 100_000


def test_paths_with_a_tilde_spaces_quotes_and_other_alphabets(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = checkout.folder / "my home"
    (home / "模型 'q' $x").mkdir(parents=True)
    (checkout.folder / "tiny-llama.gguf").rename(home / "模型 'q' $x" / "größe.gguf")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("LC_ALL", "C")
    source = {"path": "~/模型 'q' $x/größe.gguf"}
    card = {"about": "schön", "title": "größe"}
    checkout.configure(
        lambda config: config.update(
            LEAN, models={"tiny": {"source": source, "card": card}}, results="~/ergebnisse ä"
        )
    )
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    monkeypatch.setenv("PYTHONUTF8", "0")
    refused = checkout.snakemake()
    assert refused.returncode == 1
    assert "cannot be named in the locale's ascii; export PYTHONUTF8=1" in refused.stderr.splitlines()[-1]
    monkeypatch.setenv("PYTHONUTF8", "1")
    checkout.run()
    written = (home / "ergebnisse ä" / "tiny" / "card" / "README.md").read_text("utf-8")
    assert "schön" in written
    assert "# größe" in written
    assert not (checkout.folder / "~").exists()
    assert checkout.due() == set()


def test_an_input_from_the_future_is_refused_before_work(checkout: Checkout) -> None:
    checkout.configure(
        lambda config: config.update(LEAN, recipes=["Q8_0", {"name": "own", "template": "own"}])
    )
    (checkout.folder / "recipes" / "own.yaml.j2").write_text("base: Q8_0\n", encoding="utf-8")
    tomorrow = time.time() + 86400
    for name in ("tiny-llama.gguf", "recipes/own.yaml.j2", "workflow/quantmill/card/sections/credits.md.j2"):
        path = checkout.folder / name
        os.utime(path, (tomorrow, tomorrow))
        refused = checkout.snakemake()
        assert refused.returncode == 1
        line = refused.stderr.splitlines()[-1]
        assert line.startswith("error: config.yaml: ")
        assert f"{name} was last changed 24.0 h in the future; set the clock right, or run: touch" in line
        assert not checkout.made()
        path.touch()


def test_a_spec_that_no_command_line_can_hold(checkout: Checkout) -> None:
    def long(config: dict[str, Any]) -> None:
        rules = [
            {"match": rf"blk\.0\.attn_q\.weight|{i}", "type": "q8_0", "optional": True} for i in range(2100)
        ]
        recipe = {"name": "long", "template": "custom", "base": "Q8_0", "rules": rules}
        config.update(LEAN, recipes=[recipe])
        config["models"]["tiny"]["card"].update(
            dict.fromkeys(("about", "credits", "license_notes"), "A long text. " * 4600)
        )

    checkout.configure(long)
    checkout.run()
    assert checkout.due() == set()
    checkout.configure(lambda config: (long(config), config["recipes"][0]["rules"][-1].update(type="q6_K")))
    assert checkout.due() >= {"plan_types long", "quantize long", CARD}
    assert "list_tensors" not in checkout.due()
    checkout.configure(
        lambda config: (long(config), config["models"]["tiny"]["card"].update(about="A new text. " * 5000))
    )
    assert checkout.due() == {CARD}


def test_a_python_path_with_other_packages_is_refused(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = checkout.folder / "theirs"
    (theirs / "gguf").mkdir(parents=True)
    (theirs / "gguf" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    refused = checkout.snakemake("-n")
    assert refused.returncode == 1
    line = f"error: PYTHONPATH: {theirs} holds a gguf of its own"
    assert any(said.startswith(line) for said in refused.stderr.splitlines())


def test_a_second_config_replaces_the_first(checkout: Checkout) -> None:
    def other(config: dict[str, Any]) -> None:
        config["models"] = {"other": config["models"]["tiny"]}
        config.update(LEAN)

    checkout.configure(other, "other.yaml")
    due = checkout.due("--configfile=other.yaml")
    assert due == {
        "check_source",
        "list_tensors",
        "plan_types Q8_0",
        "tabulate_memory",
        "quantize Q8_0",
        "check_file Q8_0",
        "write_lock",
        CARD,
    }
    assert "results/tiny" not in checkout.run("-n", "--configfile=other.yaml").stdout
    # Single values still override the default config.
    assert "elsewhere/tiny" in checkout.run("-n", "--config", "results=elsewhere").stdout


def test_what_the_stages_warn_of_is_said_at_the_end_of_the_run_that_made_it(checkout: Checkout) -> None:
    (checkout.folder / "kld.csv").write_text("QTYPE,output.weight\nq4_K,0.1\n", encoding="utf-8")
    (checkout.folder / "curve.csv").write_text(
        "QTYPE,group0\nq4_K,0.02\nq8_k_r9,0.01\nq8_0,0.001\n", encoding="utf-8"
    )
    checkout.configure(
        lambda config: config.update(LEAN, sensitivity={"import": "kld.csv", "curve": "curve.csv"})
    )
    first, second = checkout.run("sensitivities"), checkout.run("sensitivities")
    said = [line for line in first.stderr.splitlines() if line.startswith("warning: ")]
    assert said[0].startswith("warning: neither engine has 1 type (q8_k_r9) of the curve (results/tiny/logs/")
    assert "no column for 15 tensors" in said[1]
    assert "warning: " not in second.stderr


def test_a_part_can_be_asked_for(checkout: Checkout) -> None:
    assert checkout.due("plans") == {"tabulate_memory"} | {
        f"plan_types {recipe}" for recipe in ("Q8_0", "mix")
    }
    left = checkout.folder / "results" / "tiny" / "gguf" / ".tiny-old.gguf.00112233.part"
    left.parent.mkdir(parents=True)
    left.touch()
    os.utime(left, (0, 0))
    checkout.run("results/tiny/plans/mix.tsv")
    assert not left.exists(), "a run that ends well removes what killed ones have left"
    assert {path.name for path in checkout.made()} == {"mix.yaml", "mix.tsv", "mix.json"}


def test_a_header_alone_is_planned_and_refused_by_what_needs_the_data(checkout: Checkout) -> None:
    model = checkout.folder / "tiny-llama.gguf"
    checkout.configure(lambda config: config.update(LEAN))
    checkout.run("results/tiny/plans/Q8_0.json", "results/tiny/manifest.tsv")
    whole = checkout.result("plans/Q8_0.json").read_text("utf-8")
    start = json.loads(checkout.result("model.json").read_text("utf-8"))["metadata_bytes"]
    _cut(model, start)
    checkout.run("plans")
    assert checkout.result("plans/Q8_0.json").read_text("utf-8") == whole
    refused = checkout.snakemake("quants")
    said = {line for line in refused.stderr.splitlines() if line.startswith("error: ")}
    assert refused.returncode == 1
    assert len(said) == 1
    assert "tiny-llama.gguf: a header alone" in said.pop()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (
            {"about": "{{ modle }}"},
            "models.tiny.card.about: broken template: 'modle' is undefined; known are",
        ),
        ({"about": {"file": "why.md"}}, "why.md: broken template, line 2: "),
        ({"about": {"file": "gone.md"}}, "gone.md: no such file; give a markdown file in UTF-8"),
        (
            {"same_size": [{"name": "x", "csv": "x.csv", "source": "there"}]},
            "x.csv: line 1: unknown column ppl; known are file, bytes, gib, gb, humaneval, kld",
        ),
        ({"same_size": [{"name": "x", "results": "nowhere"}]}, "nowhere: no such file"),
        (
            {"same_size": [{"name": "x", "model": "y"}]},
            "models.tiny.card.same_size: no model y; there are tiny",
        ),
    ],
)
def test_what_the_card_cannot_say_is_refused_before_work(checkout: Checkout, card: dict, said: str) -> None:
    (checkout.folder / "why.md").write_text("good\n{% if %}", encoding="utf-8")
    (checkout.folder / "x.csv").write_text("file,gb,ppl\na,1,9\n", encoding="utf-8")
    checkout.configure(lambda config: config["models"]["tiny"].update(card=card))
    refused = checkout.snakemake("--dry-run")
    assert refused.returncode != 0
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert said in line and "Traceback" not in refused.stderr


def test_a_manifest_is_planned(checkout: Checkout) -> None:
    checkout.configure(lambda config: config.update(LEAN))
    checkout.run("plans", "results/tiny/manifest.tsv")
    whole = checkout.result("plans/Q8_0.tsv").read_text("utf-8")
    kept = checkout.folder / "kept"
    kept.mkdir()
    for name in ("manifest.tsv", "model.json"):
        checkout.result(name).rename(kept / name)
    (checkout.folder / "tiny-llama.gguf").unlink()
    checkout.configure(
        lambda config: config.update(LEAN, models={"tiny": {"source": {"path": "kept/manifest.tsv"}}})
    )
    checkout.run("plans")
    assert checkout.result("plans/Q8_0.tsv").read_text("utf-8") == whole


def test_snakemakes_own_views_need_no_cores(checkout: Checkout) -> None:
    checkout.configure(lambda config: config.update(LEAN))
    checkout.run()
    checkout.run("--report", "report.html", cores=None)
    assert "bits.svg" in (checkout.folder / "report.html").read_text("utf-8")
    assert "no update" in checkout.run("--summary", cores=None).stdout
    assert "Congratulations" in checkout.run("--lint", cores=None).stderr


def test_a_source_on_the_hub_is_fetched_first(checkout: Checkout) -> None:
    hub = {"hf": "a/b", "file": "q/x.gguf", "revision": "0" * 40}
    checkout.configure(lambda config: config.update(LEAN, models={"tiny": {"source": hub}}))
    assert "fetch_source q/x.gguf" in checkout.due()


def field(**fields: Any) -> Callable[[Checkout], None]:
    """Fields of the config."""
    return lambda checkout: checkout.configure(lambda config: config.update(fields))


def model(**fields: Any) -> Callable[[Checkout], None]:
    """Fields of the model."""
    return lambda checkout: checkout.configure(lambda config: config["models"]["tiny"].update(fields))


REFUSED: dict[str, tuple[Callable[[Checkout], None], str]] = {
    "an unknown field": (
        model(sorce="x"),
        "config.yaml: models.tiny.sorce: unknown field; did you mean source?",
    ),
    "two recipes of one name": (
        field(recipes=["Q8_0", "Q8_0"]),
        "config.yaml: recipes[1]: Q8_0 is there twice",
    ),
    "a missing source": (
        model(source={"path": "x.gguf"}),
        "config.yaml: models.tiny.source: no such file: x.gguf",
    ),
    "a missing text": (
        lambda checkout: (checkout.folder / "two.txt").unlink(),
        "config.yaml: corpora.calibration.sources[1].path: no such file: two.txt",
    ),
    "a name with `..`": (field(recipes=["../x"]), 'config.yaml: recipes[0]: "../x" is not allowed'),
    "a candidate type that the engine lacks": (
        lambda checkout: checkout.configure(lambda c: c["sensitivity"].update(types=["q4_K", "iq4_ks"])),
        "config.yaml: field sensitivity.types[1]: ",
    ),
    "braces in a path": (
        lambda checkout: checkout.configure(
            lambda c: c["models"]["tiny"].update(source={"path": "a{b}/m.gguf"})
        ),
        'config.yaml: models.tiny.source.path: "a{b}/m.gguf" is not allowed',
    ),
    "an unknown template": (
        field(recipes=[{"name": "x", "template": "presett"}]),
        "config.yaml: recipe x: no template presett.yaml.j2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_config_is_refused_in_one_line(checkout: Checkout, case: str) -> None:
    change, message = REFUSED[case]
    change(checkout)
    refused = checkout.snakemake()
    assert refused.returncode == 1
    profile, line = refused.stderr.splitlines()
    assert profile.startswith("Using workflow specific profile profiles/default")
    assert line.startswith(f"error: {message}")
    assert not refused.stdout
    assert not (checkout.folder / "results").exists()


def test_what_a_model_does_not_have_is_refused_in_one_line(checkout: Checkout) -> None:
    checkout.configure(lambda config: config.update(imatrix=None))
    refused = checkout.snakemake("results/tiny/imatrix.gguf")
    assert refused.returncode == 1
    line = "error: config.yaml: tiny has no imatrix; give it one under imatrix"
    assert refused.stderr.splitlines()[-1] == line
    assert "Traceback" not in refused.stderr


FAILING: dict[str, tuple[Callable[[Checkout], None], str, str]] = {
    "a truncated GGUF": (
        lambda checkout: _cut(checkout.folder / "tiny-llama.gguf", 1_000_000),
        "results/tiny/manifest.tsv",
        "tiny-llama.gguf",
    ),
    "an unknown preset": (field(recipes=["Q4_K_X"]), "plans", "Q4_K_X"),
    "a type that needs an imatrix": (field(recipes=["IQ2_XXS"], imatrix=None), "plans", "imatrix"),
    "a missing layer's score": (
        lambda checkout: _scores(checkout, '{"0": 1}'),
        "plans",
        "scores.json: no importance of layer 1; give every layer a score",
    ),
    "an import that matches nothing": (
        lambda checkout: _imported(checkout, "^sideways$=q4_K"),
        "plans",
        "lines.txt: line 1: ^sideways$ matches no tensor",
    ),
    "a kill": (
        lambda checkout: checkout.edit(
            "workflow/quantmill/model/manifest.py",
            "    command.run(arguments, main)",
            "    command.run(arguments, lambda *_: __import__('os').kill(__import__('os').getpid(), 9))",
        ),
        "results/tiny/manifest.tsv",
        "error: model.manifest: ended by SIGKILL, most likely for memory: it used ",
    ),
    "too little text": (
        lambda checkout: (checkout.folder / "two.txt").write_text("Short.", encoding="utf-8"),
        "results/tiny/corpus/calibration.parquet",
        "two",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_stage_says_why_in_one_line_and_leaves_nothing(checkout: Checkout, case: str) -> None:
    change, target, word = FAILING[case]
    change(checkout)
    failed = checkout.snakemake(target)
    said = [line for line in failed.stderr.splitlines() if line.startswith("error: ")]
    assert failed.returncode == 1
    # As it happens, and again at the end, where it is not buried in Snakemake's own words.
    assert len(said) == 2
    assert said[0] == said[1]
    assert word in said[0]
    assert "Traceback" not in failed.stderr
    assert not [path for path in checkout.made() if path.suffix != ".yaml"]


def test_all_cores_are_those_of_the_cgroup(checkout: Checkout) -> None:
    checkout.edit(
        "workflow/quantmill/machine.py",
        "return max(1, min([allowed, *map(int, quotas), *given]))",
        "return 2",
    )
    commands = checkout.run("-n", "--printshellcmds", cores=64).stdout
    assert set(re.findall(r"--threads (\d+)", commands)) == {"2"}


@pytest.mark.parametrize(("text", "other"), [("four", "calibration"), ("three", "tuning")])
def test_tuning_shares_no_row_with_what_comes_before_and_after(
    checkout: Checkout, text: str, other: str
) -> None:
    """The text of the tuning corpus is calibrated on, or that of the held-out one is tuned on."""
    seen = "one" if text == "four" else "four"
    (checkout.folder / f"{text}.txt").write_text(
        (checkout.folder / f"{seen}.txt").read_text("utf-8"), encoding="utf-8"
    )
    failed = checkout.snakemake("results/tiny/corpus/held-out.parquet")
    assert failed.returncode == 1
    assert f"rows with the corpus {other}, the first begins" in failed.stderr
    assert not checkout.result("corpus/held-out.parquet").exists()


BEFORE_PROBES: dict[str, tuple[Callable[[Checkout], None], str]] = {
    "a budget below the least": (
        lambda checkout: _fitted(checkout, size="100 KiB"),
        "recipe fit: 102,400 bytes (0.10 MiB) cannot be reached; the file can have 1,5",
    ),
    "a memory that cannot hold it": (
        lambda checkout: _fitted(checkout, memory={"total": "1 GiB", "context": 128}),
        "recipe fit.memory: 1.00 GiB of memory cannot hold it: the file takes 1.5 MiB at least",
    ),
    "a type that will not be measured": (
        lambda checkout: _fitted(checkout, bpw=6, types=["q5_K", "q8_0"]),
        "recipe fit.types: the type q5_K has no sensitivities; leave it out, or add it",
    ),
    "held-out text that is tuned on": (
        lambda checkout: (checkout.folder / "three.txt").write_text(
            (checkout.folder / "four.txt").read_text("utf-8"), encoding="utf-8"
        ),
        "corpus held-out: shares ",
    ),
}


@pytest.mark.parametrize("case", BEFORE_PROBES)
def test_what_no_probe_is_needed_to_tell_is_refused_before_any_is_made(checkout: Checkout, case: str) -> None:
    change, said = BEFORE_PROBES[case]
    change(checkout)
    refused = checkout.snakemake()
    assert refused.returncode == 1
    assert f"error: {said}" in refused.stderr and "Traceback" not in refused.stderr
    assert not checkout.result("imatrix.gguf").exists()
    assert not checkout.result("logs/sensitivity.log").exists()


def _fitted(checkout: Checkout, **fields: Any) -> None:
    fit = {"name": "fit", "template": "budget", **fields}
    checkout.configure(lambda config: config["recipes"].append(fit))


def _scores(checkout: Checkout, text: str) -> None:
    (checkout.folder / "scores.json").write_text(text, encoding="utf-8")
    recipe = {"name": "CD-Q6_K", "template": "contrib-dynamic", "importance": {"scores": "scores.json"}}
    field(recipes=[recipe])(checkout)


def _imported(checkout: Checkout, text: str) -> None:
    (checkout.folder / "lines.txt").write_text(text, encoding="utf-8")
    field(recipes=[{"name": "x", "template": "import", "file": "lines.txt", "form": "regex"}])(checkout)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
