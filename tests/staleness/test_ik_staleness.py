"""Two engines in one run: the jobs that each makes stale, and what they measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout
from ik import NEEDED
from quantmill.formats import ggufio

pytestmark = NEEDED

ROWS = {"source", "source-ik", "Q8_0", "IQ4_KS"}


def bench(*rows: str) -> set[str]:
    return {f"measure_{what} {row}" for what in ("divergence", "perplexity", "speed") for row in rows}


CARD = {"write_card"}
CALIBRATION = {"build_corpus calibration", "measure_imatrix"}
MEMORY = {"tabulate_memory"}
PLANS = {"plan_types Q8_0", "plan_types IQ4_KS"} | MEMORY
LOCK = {"write_lock"}
QUANTS = {"quantize Q8_0", "check_file Q8_0", "quantize IQ4_KS", "check_file IQ4_KS"} | LOCK


def configure(checkout: Checkout, change: Callable[[dict[str, Any]], Any] = lambda config: None) -> None:
    """The test's own config, with a change made to it."""

    def two_engines(config: dict[str, Any]) -> None:
        config.update(sensitivity=None, recipes=["Q8_0", {"name": "IQ4_KS", "template": "ik"}])
        change(config)

    checkout.configure(two_engines)


def upgrade(engine: str) -> Callable[[Checkout], None]:
    """Another library of one engine."""
    digest = (
        "\n\n_digest = digest\n\n\ndef digest(file_sha256, engine='mainline'):\n"
        f"    return 'other' if engine == '{engine}' else _digest(file_sha256, engine)\n"
    )

    def change(checkout: Checkout) -> None:
        path = checkout.folder / "workflow/quantmill/engine/library.py"
        path.write_text(path.read_text("utf-8") + digest, encoding="utf-8")

    return change


CASES: dict[str, tuple[Callable[[Checkout], None], set[str]]] = {
    "nothing": (lambda checkout: None, set()),
    "ik_llama.cpp": (
        upgrade("ik"),
        {"quantize IQ4_KS", "check_file IQ4_KS"} | bench("IQ4_KS", "source-ik") | LOCK | CARD,
    ),
    # the source is checked, the text tokenized, the imatrix made and plans are resolved by llama.cpp
    "llama.cpp": (
        upgrade("mainline"),
        {"check_source"}
        | CALIBRATION
        | {"build_corpus held-out"}
        | PLANS
        | QUANTS
        | bench("source", "Q8_0", "IQ4_KS")
        | bench("source-ik") - {"measure_speed source-ik"}
        | CARD,
    ),
    "a field of the recipe": (
        lambda checkout: configure(checkout, lambda config: config["recipes"][1].update(imatrix="required")),
        {"plan_types IQ4_KS", "quantize IQ4_KS", "check_file IQ4_KS"}
        | (bench("IQ4_KS") | MEMORY | LOCK | CARD),
    ),
    "error feedback": (
        lambda checkout: configure(checkout, lambda config: config["recipes"][1].update(rounding="gptq")),
        {"measure_moments", "plan_types IQ4_KS", "quantize IQ4_KS", "check_file IQ4_KS"}
        | {"quantize_nearest IQ4_KS", "measure_nearest IQ4_KS"}
        | (bench("IQ4_KS") | MEMORY | LOCK | CARD),
    ),
    "no recipe of ik left": (
        lambda checkout: configure(checkout, lambda config: config["recipes"].pop()),
        MEMORY | LOCK | CARD,
    ),
    "the source's divergence in ik deleted": (
        lambda checkout: checkout.result("bench/source-ik/kld.json").unlink(),
        bench("source-ik", "IQ4_KS") - {"measure_speed source-ik", "measure_speed IQ4_KS"} | CARD,
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    configure(checkout)
    checkout.run(cores=1)
    return checkout


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: Checkout, tmp_path: Path, case: str) -> None:
    change, expected = CASES[case]
    assert built.due_after(change, tmp_path / "checkout") == expected


def test_what_was_measured_is_of_the_files_own_engine(built: Checkout) -> None:
    def measured(row: str, what: str) -> dict[str, Any]:
        return dict(json.loads(built.result(f"bench/{row}/{what}.json").read_text("utf-8")))

    engines = {
        row: {measured(row, what).get("engine") for what in ("kld", "perplexity", "speed")} for row in ROWS
    }
    assert engines == {
        "source": {None},
        "Q8_0": {None},
        "source-ik": {"ik"},
        "IQ4_KS": {"ik"},
    }
    for row in ("source", "source-ik"):
        assert measured(row, "kld")["kld"]["max"] == 0
        assert measured(row, "kld")["reference_sha256"] == measured(row, "speed")["model_sha256"]
    theirs = measured("IQ4_KS", "kld")
    assert 0 < theirs["kld"]["mean"] < 0.01
    # the engines differ in the last bits, and each file is compared within its own
    assert theirs["perplexity_reference"] == measured("source-ik", "kld")["perplexity"]
    assert theirs["perplexity_reference"] != measured("source", "kld")["perplexity"]
    assert measured("source-ik", "speed")["generate"]["mean"] > 0


def test_a_file_with_error_feedback_is_compared_in_its_own_engine(built: Checkout, tmp_path: Path) -> None:
    checkout = built.copy(tmp_path / "checkout")
    configure(checkout, lambda config: config["recipes"][1].update(rounding="gptq"))
    checkout.run(cores=1)
    paths = (checkout.result(f"{folder}.json") for folder in ("bench/IQ4_KS/kld", "nearest/IQ4_KS.kld"))
    gptq, nearest = (json.loads(path.read_text("utf-8")) for path in paths)
    assert gptq["engine"] == nearest["engine"] == "ik"
    assert gptq["kld"]["mean"] < nearest["kld"]["mean"]


def test_the_file_has_iks_types_and_says_whose_it_is(built: Checkout) -> None:
    header = ggufio.read_header(built.result("gguf/tiny-IQ4_KS.gguf"), data=False)
    assert {tensor.type_id for tensor in header.tensors if tensor.type == "iq4_ks"} == {144}
    assert header.value("general.file_type") == 145
    assert header.value("quantize.imatrix.file") == "tiny-imatrix.gguf"
    assert json.loads(built.result("gguf/tiny-IQ4_KS.json").read_text("utf-8"))["engine"] == "ik"
    plan = json.loads(built.result("plans/IQ4_KS.json").read_text("utf-8"))
    assert plan["engine"] == "ik" and "mainline llama.cpp cannot load this file" in plan["warnings"][-1]
