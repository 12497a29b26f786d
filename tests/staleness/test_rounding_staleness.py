"""As in test_staleness, with a recipe that is rounded by gptq and compared with the same types to nearest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout

Change = Callable[[Checkout], None]

CARD = {"write_card"}
MOMENTS = {"measure_moments"}
NEAREST = {"quantize_nearest mix", "measure_nearest mix"}
MEASURED = {"measure_divergence mix", "measure_perplexity mix", "measure_speed mix"}
LOCK = {"write_lock"}
FILE = {"quantize mix", "check_file mix"} | MEASURED | LOCK
PLAN = {"plan_types mix", "tabulate_memory"}
KLDS = {f"measure_divergence {row}" for row in ("source", "Q8_0", "mix")}
PERPLEXITIES = {f"measure_perplexity {row}" for row in ("source", "Q8_0", "mix")}
Q8 = {
    "quantize Q8_0",
    "check_file Q8_0",
    *LOCK,
    *(f"measure_{what} Q8_0" for what in ("divergence", "perplexity", "speed")),
}
OTHER_TOO = {"plan_types Q8_0", "tabulate_memory", "quantize_nearest Q8_0", "measure_nearest Q8_0"} | Q8
CROSS = {"quantize_gptq mix", "measure_cross mix"}
TUNED = {"build_corpus tuning", "measure_sensitivity", "draw_sensitivity"}


def settled(config: dict[str, Any]) -> None:
    """A preset, and a recipe beside it that is rounded by gptq."""
    config["recipes"][1]["rounding"] = "gptq"


def with_(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of the config."""
    return lambda checkout: checkout.configure(lambda config: (settled(config), change(config)))


def section(**fields: Any) -> Change:
    """Other sections of the config."""
    return with_(lambda config: config.update(fields))


def recipe(number: int, **fields: Any) -> Change:
    """Other fields of a recipe."""

    def change(config: dict[str, Any]) -> None:
        given = config["recipes"][number]
        named = {"name": given, "base": given} if isinstance(given, str) else given
        config["recipes"][number] = named | fields

    return with_(change)


def delete(name: str) -> Change:
    """A result that is gone."""
    return lambda checkout: checkout.result(name).unlink()


def touch(checkout: Checkout) -> None:
    """Every file of the checkout and of the results gets the time of now."""
    now = time.time()
    for path in checkout.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path, (now, now))


FEWER = {"corpus": "calibration", "chunks": 2, "context": 128}
MORE = {"corpus": "calibration", "chunks": 6, "context": 128}

CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (with_(lambda config: None), set()),
    "every file touched": (touch, set()),
    "to nearest again": (recipe(1, rounding="nearest"), PLAN | FILE | CARD),
    "the other recipe too": (recipe(0, rounding="gptq"), OTHER_TOO | CARD),
    "the default of the file": (section(rounding="gptq"), OTHER_TOO | CARD),
    "no acceptance test": (recipe(1, acceptance_test=False), CARD),
    "gptaq": (recipe(1, rounding="gptaq"), PLAN | CROSS | FILE | NEAREST | CARD),
    "a type of the recipe": (
        recipe(1, embeddings="q6_K"),
        PLAN | FILE | NEAREST | CARD,
    ),
    "split files": (
        recipe(1, split={"max": "1 MB"}),
        {"quantize_split mix", "check_file mix"} | MEASURED | LOCK | CARD,
    ),
    "chunks of the moments": (section(moments=FEWER), MOMENTS | FILE | CARD),
    # the corpus has more chunks then, and all that was made from it or disjoint from it is made again
    "more chunks of the moments than of the imatrix": (
        section(moments=MORE),
        {"build_corpus calibration", "build_corpus held-out", "measure_imatrix"}
        | (MOMENTS | TUNED | FILE | Q8 | NEAREST | KLDS | PERPLEXITIES | CARD),
    ),
    "chunks of the divergence": (
        section(bench={"kld": {"corpus": "held-out", "chunks": 4, "context": 128}}),
        {"build_corpus held-out"} | KLDS | NEAREST | CARD,
    ),
    "no divergence": (
        section(bench={"perplexity": {"corpus": "held-out", "chunks": 3, "context": 128}}),
        PERPLEXITIES | CARD,
    ),
    "the version of the moments": (lambda h: h.raise_version("measure.moments"), MOMENTS | FILE | CARD),
    "the version of quantizing": (lambda h: h.raise_version("quantize.write"), FILE | Q8 | NEAREST | CARD),
    "deleted moments": (delete("moments.json"), MOMENTS | FILE | CARD),
    "a deleted divergence of nearest": (delete("nearest/mix.kld.json"), NEAREST | CARD),
    "a deleted divergence": (
        delete("bench/mix/kld.json"),
        {"measure_divergence mix", "measure_perplexity mix"} | CARD,
    ),
}
# Whose real run is made too.
RUN = (
    "gptaq",
    "the other recipe too",
    "chunks of the divergence",
    "split files",
    "a deleted divergence of nearest",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built: first to nearest, then one recipe by gptq."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    checkout.run()
    checkout.configure(settled)
    assert checkout.due() == PLAN | MOMENTS | FILE | NEAREST | CARD
    checkout.run()
    return checkout


def test_what_is_compared_with_was_there_for_a_time(built: Checkout) -> None:
    names = {
        path.name for path in (built.folder / "results" / "tiny" / "nearest").rglob("*") if path.is_file()
    }
    assert names == {"mix.kld.json", "tiny-mix.json"}
    card = built.result("card/README.md").read_text("utf-8")
    assert "## Rounding" in card and "nearest/" not in card


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: Checkout, tmp_path: Path, case: str) -> None:
    checkout = built.copy(tmp_path / "checkout")
    change, expected = CASES[case]
    change(checkout)
    assert checkout.due() == expected
    if case in RUN:
        checkout.run()
        assert checkout.due() == set()


def test_what_gptaq_needs_is_made_once(built: Checkout, tmp_path: Path) -> None:
    checkout = built.copy(tmp_path / "checkout")

    def crossed(**more: Any) -> Change:
        return with_(lambda config: config["recipes"][1].update({"rounding": "gptaq"} | more))

    crossed()(checkout)
    checkout.run()
    names = {
        path.name for path in (checkout.folder / "results" / "tiny" / "cross").rglob("*") if path.is_file()
    }
    assert names == {"mix.json", "tiny-mix.json"}  # the GGUF was there for a time
    checkout.result("gguf/tiny-mix.gguf").unlink()
    assert checkout.due() == FILE | CARD  # of the units that are in the store
    checkout.run()
    for more, expected in (
        ({"split": {"max": "1 MB"}}, {"quantize_split mix", "check_file mix"} | MEASURED | LOCK | CARD),
        ({"embeddings": "q6_K"}, PLAN | CROSS | FILE | NEAREST | CARD),
    ):
        crossed(**more)(checkout)
        assert checkout.due() == expected
    with_(lambda config: config.update(moments=FEWER) or config["recipes"][1].update(rounding="gptaq"))(
        checkout
    )
    assert checkout.due() == MOMENTS | CROSS | FILE | CARD
    crossed()(checkout)
    checkout.raise_version("measure.cross")
    assert checkout.due() == CROSS | FILE | CARD


def test_a_budget_of_gptq_is_measured_with_it(built: Checkout, tmp_path: Path) -> None:
    checkout = built.copy(tmp_path / "checkout")
    fit = {"name": "fit", "template": "budget", "bpw": 6, "rounding": "gptq"}
    with_(lambda config: config["recipes"].append(fit))(checkout)
    due = checkout.due("results/tiny/sensitivity.tsv")
    assert due == {"measure_sensitivity"}
    assert {"quantize_nearest fit", "measure_nearest fit", "check_budget fit"} <= checkout.due()
    assert not {"measure_moments", *NEAREST, "quantize mix", "check_file mix"} & checkout.due()
