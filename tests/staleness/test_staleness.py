"""For each change, the exact set of jobs that are due; then the run, after which nothing is."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout

CHECKED = {"check_source"}
LISTED = {"list_tensors"}
MEMORY = {"tabulate_memory"}
PLANS = {"plan_types Q8_0", "plan_types mix"} | MEMORY
LOCK = {"write_lock"}
QUANTS = {"quantize Q8_0", "check_file Q8_0", "quantize mix", "check_file mix"} | LOCK
CALIBRATION = {"build_corpus calibration", "measure_imatrix"}
TUNING = {"build_corpus tuning"}
SENSITIVITY = {"measure_sensitivity", "draw_sensitivity"}
HELD_OUT = {"build_corpus held-out"}
PERPLEXITIES = {f"measure_perplexity {row}" for row in ("source", "Q8_0", "mix")}
KLDS = {f"measure_divergence {row}" for row in ("source", "Q8_0", "mix")}
SPEEDS = {f"measure_speed {row}" for row in ("source", "Q8_0", "mix")}
SOURCE = {"measure_divergence source", "measure_perplexity source", "measure_speed source"}
BENCH = KLDS | PERPLEXITIES | SPEEDS
CARD = {"write_card"}
ALL = CHECKED | LISTED | PLANS | QUANTS | CALIBRATION | TUNING | SENSITIVITY | HELD_OUT | BENCH | CARD
MIX = {
    "plan_types mix",
    "tabulate_memory",
    "quantize mix",
    "check_file mix",
    "write_lock",
    "measure_divergence mix",
    "measure_perplexity mix",
    "measure_speed mix",
}
MIX_MEASURED = {"measure_divergence mix", "measure_perplexity mix", "measure_speed mix"}


def touch(checkout: Checkout) -> None:
    """Give every file of the checkout and of the results the time of now, the model among them."""
    now = time.time()
    for path in checkout.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path, (now, now))


def change_source(checkout: Checkout) -> None:
    """Another value in the last tensor of the source."""
    path = checkout.folder / "tiny-llama.gguf"
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def reorder(checkout: Checkout) -> None:
    """The same config with comments, its keys in another order."""
    checkout.configure(
        lambda c: (
            [c.update({key: c.pop(key)}) for key in sorted(c)]
            + [c["models"]["tiny"].update(source=c["models"]["tiny"].pop("source"))]
        )
    )
    path = checkout.folder / "config.yaml"
    path.write_text("# a comment\n\n" + path.read_text("utf-8"), encoding="utf-8")


def recipe(**parameters: object) -> Callable[[Checkout], None]:
    """The recipe `mix` with other parameters."""
    return lambda checkout: checkout.configure(lambda config: config["recipes"][1].update(parameters))


def section(*path: str, **fields: object) -> Callable[[Checkout], None]:
    """Other fields in a section of the config."""

    def change(config: dict) -> None:
        for key in path:
            config = config[key]
        config.update(fields)

    return lambda checkout: checkout.configure(change)


def edit(file: str, old: str, new: str) -> Callable[[Checkout], None]:
    """Other text in a file of the checkout."""
    return lambda checkout: checkout.edit(file, old, new)


def delete(*names: str) -> Callable[[Checkout], None]:
    """Results that are gone."""

    def change(checkout: Checkout) -> None:
        for name in names:
            checkout.result(name).unlink()

    return change


def append(file: str, more: str) -> Callable[[Checkout], None]:
    """More text at the end of a file of the checkout."""

    def change(checkout: Checkout) -> None:
        path = checkout.folder / file
        path.write_text(path.read_text("utf-8") + more, encoding="utf-8")

    return change


def text_in_a_file(checkout: Checkout) -> None:
    """The card's first words from a markdown file."""
    (checkout.folder / "why.md").write_text("{{ files }} files of {{ model }}.", encoding="utf-8")
    section("models", "tiny", "card", about={"file": "why.md"})(checkout)


def figures_of_another(checkout: Checkout) -> None:
    """A table of published figures beside the model's own."""
    (checkout.folder / "published.csv").write_text("file,gb,kld\nQ4,0.01,0.05\n", encoding="utf-8")
    rival = {"name": "Other", "csv": "published.csv", "source": "their card"}
    section("models", "tiny", "card", same_size=[rival])(checkout)


def spread(config: dict[str, Any]) -> None:
    """Three shards, of which quantizing makes use: these corpora are of a unit each."""
    config["shards"] = 3


# A test's own engine: the stages still load the real one, the specs name another.
OTHER_ENGINE = append(
    "workflow/quantmill/engine/library.py",
    "\n\ndef digest(file_sha256, engine='mainline'):\n    return 'other'\n",
)
CHUNKS = {"corpus": "held-out", "context": 128}
TEMPLATE = "\n{# another sentence #}\n"

CASES: dict[str, tuple[Callable[[Checkout], None], set[str]]] = {
    "nothing": (lambda checkout: None, set()),
    "over how many jobs it is spread": (lambda checkout: checkout.configure(spread), set()),
    "a comment and the order of keys": (reorder, set()),
    "one field of one recipe": (recipe(embeddings="q6_K"), MIX | CARD),
    "two fields of one recipe swapped": (recipe(embeddings="q6_K", output="q8_0"), MIX | CARD),
    "the grid of the source kept": (recipe(keep="grid"), MIX | CARD),
    "a recipe gone": (lambda h: h.configure(lambda c: c["recipes"].pop(0)), MEMORY | LOCK | CARD),
    "a split recipe": (
        recipe(split={"max": "1 MB"}),
        {"quantize_split mix", "check_file mix"} | MIX_MEASURED | LOCK | CARD,
    ),
    "the version of the memory tables": (
        lambda h: h.raise_version("model.memory"),
        MEMORY | CARD,
    ),
    "contexts of the card": (section("models", "tiny", "card", contexts=[128, 256]), MEMORY | CARD),
    "deleted memory tables": (delete("memory.json"), MEMORY | CARD),
    "chunks of the perplexity": (section("bench", "perplexity", chunks=1), PERPLEXITIES | CARD),
    "more chunks of the perplexity": (
        section("bench", "perplexity", chunks=4),
        HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "more chunks of the divergence": (
        section("bench", "kld", chunks=4),
        HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    # the perplexities come after the divergences, and find in the store what was evaluated for these
    "chunks of the divergence": (
        section("bench", kld=CHUNKS | {"chunks": 2}),
        HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "the version of the divergence": (
        lambda h: h.raise_version("measure.divergence"),
        KLDS | PERPLEXITIES | CARD,
    ),
    "chunks of the divergence and the perplexity swapped": (
        section("bench", kld=CHUNKS | {"chunks": 2}, perplexity=CHUNKS | {"chunks": 3}),
        KLDS | PERPLEXITIES | CARD,
    ),
    "no divergence": (section("bench", kld=None), HELD_OUT | PERPLEXITIES | CARD),
    "repetitions of the speed": (section("bench", "speed", repetitions=1), SPEEDS | CARD),
    "no speed": (section("bench", speed=None), CARD),
    "no perplexity": (section("bench", perplexity=None), CARD),
    "neither divergence nor perplexity": (
        section("bench", kld=None, perplexity=None),
        CARD,
    ),
    "chunks of the imatrix": (
        section("imatrix", chunks=3),
        CALIBRATION
        | TUNING
        | SENSITIVITY
        | HELD_OUT
        | PLANS
        | QUANTS
        | BENCH - {"measure_speed source"}
        | CARD,
    ),
    "minutes of the sensitivity": (section("sensitivity", minutes=50), SENSITIVITY | CARD),
    "types of the sensitivity": (section("sensitivity", types=["q8_0", "q4_K"]), SENSITIVITY | CARD),
    "chunks of the sensitivity": (
        section("sensitivity", chunks=1),
        TUNING | SENSITIVITY | HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "no sensitivity": (section(sensitivity=None), HELD_OUT | KLDS | PERPLEXITIES | CARD),
    "the version of the sensitivity": (
        lambda h: h.raise_version("sensitivity.measure"),
        SENSITIVITY | CARD,
    ),
    "another tuning text": (
        append("four.txt", "\n\nOne more paragraph."),
        TUNING | SENSITIVITY | HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "a deleted table of sensitivities": (delete("sensitivity.tsv"), SENSITIVITY | CARD),
    "the seed of the held-out corpus": (
        section("corpora", "held-out", seed=2),
        HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "the card's template": (append("workflow/quantmill/card/sections/credits.md.j2", TEMPLATE), CARD),
    "a sentence of the card": (section("models", "tiny", "card", about="Another."), CARD),
    "a text of the card in a file": (text_in_a_file, CARD),
    "another model's figures": (figures_of_another, CARD),
    "where it is published": (section(publish={"repo": "me/{model}"}), {"name_parts"} | LOCK | CARD),
    # rates are measured again; all else of the measurements is in the store
    "metadata of the files": (section(metadata={"name": "Tiny"}), QUANTS | BENCH - SOURCE | CARD),
    "what is withheld": (section(publish={"withhold": "dominated"}), CARD),
    "a recipe's template": (
        append("recipes/preset.yaml.j2", TEMPLATE),
        PLANS | QUANTS | BENCH - SOURCE | CARD,
    ),
    "the engine": (OTHER_ENGINE, ALL - LISTED),
    "the version of a stage": (
        lambda h: h.raise_version("quantize.write"),
        QUANTS | BENCH - SOURCE | CARD,
    ),
    "every file touched": (touch, set()),
    "another source": (change_source, ALL),
    "another text": (
        append("two.txt", "\n\nOne more paragraph."),
        CALIBRATION | TUNING | SENSITIVITY | HELD_OUT | QUANTS | BENCH - {"measure_speed source"} | CARD,
    ),
    "another held-out text": (
        append("three.txt", "\n\nOne more paragraph."),
        HELD_OUT | KLDS | PERPLEXITIES | CARD,
    ),
    "a deleted GGUF": (
        delete("gguf/tiny-mix.gguf"),
        {
            "quantize mix",
            "check_file mix",
            "measure_divergence mix",
            "measure_perplexity mix",
            "measure_speed mix",
        }
        | LOCK
        | CARD,
    ),
    "a deleted imatrix": (
        delete("imatrix.dat"),
        {"measure_imatrix"} | SENSITIVITY | QUANTS | BENCH - SOURCE | CARD,
    ),
    "a deleted plan": (delete("plans/mix.tsv"), MIX | CARD),
    "a deleted measurement": (delete("bench/mix/speed.json"), {"measure_speed mix"} | CARD),
    "a deleted divergence": (
        delete("bench/mix/kld.json"),
        {"measure_divergence mix", "measure_perplexity mix"} | CARD,
    ),
    "the floor deleted": (delete("bench/source/kld.json"), KLDS | PERPLEXITIES | CARD),
    "a deleted lock": (delete("lock.json"), LOCK),
    "a lock that is verified for the card": (section(publish={"verify": "all"}), {"verify_files"} | CARD),
    "a deleted plot": (delete("card/plots/size.svg"), CARD),
    "the store's cap": (section(store={"path": "results/.store", "max": "1 GiB"}), set()),
}

# Whose real run is made too; the others hold the same rules.
RUN = (
    "a split recipe",
    "two fields of one recipe swapped",
    "chunks of the perplexity",
    "types of the sensitivity",
    "a sentence of the card",
    "the engine",
    "another source",
    "a deleted GGUF",
    "a deleted measurement",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    assert checkout.due() == ALL
    checkout.run()
    return checkout


@pytest.fixture
def checkout(built: Checkout, tmp_path: Path) -> Checkout:
    """A copy of it."""
    return built.copy(tmp_path / "checkout")


def test_files_over_a_megabyte_are_among_them(built: Checkout) -> None:
    # Snakemake compares the smaller ones by their contents.
    assert built.result("gguf/tiny-Q8_0.gguf").stat().st_size > 1_000_000
    assert (built.folder / "tiny-llama.gguf").stat().st_size > 1_000_000


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(checkout: Checkout, case: str) -> None:
    change, expected = CASES[case]
    change(checkout)
    assert checkout.due() == expected
    if case in RUN:
        checkout.run()
        assert checkout.due() == set()


def test_neither_threads_nor_a_profile_make_anything_stale(checkout: Checkout) -> None:
    profile = checkout.folder / "profile"
    profile.mkdir()
    (profile / "config.yaml").write_text(
        "cores: 2\nset-threads: {quantize: 2}\nset-resources: {quantize: {mem_mb: 9}}\n", encoding="utf-8"
    )
    assert checkout.due("--workflow-profile=profile", cores=2) == set()


def rank(config: dict) -> None:
    """A plain recipe beside one that goes by the layers' importance and one that is imported."""
    blend = {"imatrix": 0.5, "scores": {"path": "scores.json", "weight": 0.5}}
    config.update(
        bench={},
        recipes=[
            "Q8_0",
            {"name": "CD-Q6_K", "template": "contrib-dynamic", "importance": blend},
            {"name": "lines", "template": "import", "file": "lines.txt", "form": "regex", "base": "Q4_0"},
        ],
    )


def test_only_a_recipe_that_asks_for_importance_or_a_file_hangs_on_it(tmp_path: Path) -> None:
    checkout = Checkout.build(tmp_path / "checkout")
    (checkout.folder / "scores.json").write_text("[0.5, 1]", encoding="utf-8")
    (checkout.folder / "lines.txt").write_text("attn_v=q8_0", encoding="utf-8")
    checkout.configure(rank)
    checkout.run("plans")
    assert "measure_imatrix" not in checkout.due(
        "results/tiny/plans/Q8_0.tsv", "results/tiny/plans/lines.tsv"
    )
    assert checkout.due("plans") == set()
    plans = MEMORY | {f"plan_types {recipe}" for recipe in ("Q8_0", "CD-Q6_K", "lines")}
    checkout.configure(lambda config: (rank(config), config["imatrix"].update(chunks=3)))
    assert checkout.due("plans") == CALIBRATION | plans
    checkout.run("plans")
    checkout.configure(
        lambda config: (
            rank(config),
            config["imatrix"].update(chunks=3),
            config["recipes"][1]["importance"].update(imatrix=0.75),
        )
    )
    assert checkout.due("plans") == MEMORY | {"plan_types CD-Q6_K"}
    checkout.run("plans")
    (checkout.folder / "scores.json").write_text("[1, 0.5]", encoding="utf-8")
    assert checkout.due("plans") == MEMORY | {"plan_types CD-Q6_K"}
    checkout.run("plans")
    (checkout.folder / "lines.txt").write_text("attn_k=q8_0", encoding="utf-8")
    assert checkout.due("plans") == MEMORY | {"plan_types lines"}
    touch(checkout)
    assert checkout.due("plans") == MEMORY | {"plan_types lines"}
    checkout.run("plans")
    checkout.configure(
        lambda config: (
            rank(config),
            config["imatrix"].update(chunks=3),
            config["recipes"][1].update(importance="sensitivity"),
        )
    )
    measured = MEMORY | LISTED | TUNING | {"measure_sensitivity"}
    assert checkout.due("plans") == measured | {"plan_types CD-Q6_K"}
    checkout.run("plans")
    assert checkout.due("plans") == set()


def test_why_names_the_change_and_runs_nothing(built: Checkout, tmp_path: Path) -> None:
    checkout = built.copy(tmp_path / "checkout")
    assert checkout.run("why").stdout == "nothing is stale\n"
    checkout.configure(lambda config: config["imatrix"].update(chunks=3))
    before = {path: path.stat().st_mtime_ns for path in checkout.made()}
    for dry in ([], ["--dry-run"]):
        lines = checkout.run("why", "results/tiny/gguf/tiny-mix.gguf", *dry).stdout.splitlines()
        assert "results/tiny/imatrix.gguf:" in lines
        assert lines[lines.index("results/tiny/imatrix.gguf:") + 1] == "  chunks is 3, it was 4"
        assert "results/tiny/gguf/tiny-Q8_0.gguf:" not in lines
    assert {path: path.stat().st_mtime_ns for path in checkout.made()} == before
    assert "chunks is 3, it was 4" not in checkout.run("-n").stdout
    wrong = checkout.snakemake("why", "results/nothing")
    assert wrong.returncode == 1
    assert wrong.stdout == ""
