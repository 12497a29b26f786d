"""As in test_staleness, with a recipe fitted to a budget by imported sensitivities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_data import CANDIDATES
from checkout import Checkout
from quantmill.formats.ggufio import read_header
from quantmill.formats.types import known

MEMORY = {"tabulate_memory"}
LOCK = {"write_lock"}
FIT = (
    {"allocate_recipe fit", "plan_allocated fit", "quantize fit", "check_file fit", "measure_divergence fit"}
    | MEMORY
    | LOCK
)
CARD = {"write_card"}
IMPORTED = {"import_sensitivity", "draw_sensitivity"}
Change = Callable[[Checkout], None]


def settled(config: dict[str, Any]) -> None:
    """A preset, and a recipe fitted to a budget beside it; only the divergence is measured."""
    config["sensitivity"] = {"import": "kld_results.csv", "curve": "group0.csv"}
    config["recipes"] = ["Q8_0", {"name": "fit", "template": "budget", "bpw": 5.0}]
    config["bench"] = {"kld": config["bench"]["kld"]}


def with_(change: Callable[[dict[str, Any]], Any]) -> Change:
    """A change of the config."""
    return lambda checkout: checkout.configure(lambda config: (settled(config), change(config)))


def fit(**fields: Any) -> Change:
    """Other fields of the fitted recipe."""
    return with_(lambda config: config["recipes"][1].update(fields))


def swapped(checkout: Checkout) -> None:
    """The sensitivities of two tensors exchanged."""
    path = checkout.folder / "kld_results.csv"
    head, line = path.read_text("utf-8").splitlines()
    cells = line.split(",")
    cells[1], cells[2] = cells[2], cells[1]
    path.write_text(f"{head}\n{','.join(cells)}\n", encoding="utf-8")


CASES: dict[str, tuple[Change, set[str]]] = {
    "nothing": (with_(lambda config: None), set()),
    "another budget": (fit(bpw=5.5), FIT | CARD),
    "the grid of the source kept": (fit(keep="grid"), FIT | CARD),
    "a budget of two memories": (
        fit(bpw=None, memory={"gpu": "8 MiB", "cpu": "8 MiB", "context": 128}),
        FIT | CARD,
    ),
    "other candidate types": (fit(types=["q4_K", "q5_K", "q8_0"]), FIT | CARD),
    "a floor of the speed": (
        fit(types=["q4_K", "q5_K", "q8_0"], at_least={"tg": 1}),
        {"measure_types"} | FIT | CARD,
    ),
    "a pin": (fit(pin=[{"role": "output", "type": "q8_0"}]), FIT | CARD),
    "the acceptance test": (fit(acceptance_test=False), CARD),
    "another sensitivity": (swapped, IMPORTED | FIT | CARD),
    "another curve": (lambda h: h.edit("group0.csv", "q4_K,", "q4_K,1"), IMPORTED | FIT | CARD),
    "the other recipe": (
        with_(lambda config: config["recipes"].__setitem__(0, {"name": "Q8_0", "base": "Q6_K"})),
        {
            "plan_types Q8_0",
            "quantize Q8_0",
            "check_file Q8_0",
            "measure_divergence Q8_0",
        }
        | (MEMORY | LOCK | CARD),
    ),
    "the version of the allocation": (
        lambda h: h.raise_version("budget.allocate"),
        FIT | CARD,
    ),
    "a deleted report": (lambda h: h.result("recipes/fit.json").unlink(), FIT | CARD),
    "a deleted table": (lambda h: h.result("sensitivity.tsv").unlink(), IMPORTED | FIT | CARD),
    "a deleted plot": (lambda h: h.result("card/plots/sensitivity.svg").unlink(), {"draw_sensitivity"}),
}
# Whose real run is made too.
RUN = ("another sensitivity",)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with everything built."""
    checkout = Checkout.build(tmp_path_factory.mktemp("built") / "checkout")
    header = read_header(checkout.folder / "tiny-llama.gguf")
    names = [tensor.name for tensor in header.tensors if len(tensor.shape) > 1]
    values = ",".join(str(0.001 * (number + 1)) for number in range(len(names)))
    (checkout.folder / "kld_results.csv").write_text(
        f"QTYPE,{','.join(names)}\nq2_K,{values}\n", encoding="utf-8"
    )
    points = "".join(f"{kind},{4 ** (2 - known(kind).bits):.6f}\n" for kind in CANDIDATES)
    (checkout.folder / "group0.csv").write_text(f"QTYPE,group0\nbf16,0\n{points}", encoding="utf-8")
    checkout.configure(settled)
    due = checkout.due()
    assert due > IMPORTED | FIT | CARD
    checkout.run()
    return checkout


@pytest.mark.parametrize("case", CASES)
def test_exactly_these_jobs_are_due(built: Checkout, tmp_path: Path, case: str) -> None:
    checkout = built.copy(tmp_path / "checkout")
    change, expected = CASES[case]
    change(checkout)
    assert checkout.due() == expected
    if case in RUN:
        checkout.run()
        assert checkout.due() == set()


def test_a_type_that_the_engine_lacks_is_refused_before_any_work(built: Checkout, tmp_path: Path) -> None:
    checkout = built.copy(tmp_path / "checkout")
    for fields, said in (
        ({"types": ["q4_K", "iq4_kt"]}, "recipes[1].types[1]: engine mainline lacks the type iq4_kt"),
        ({"pin": [{"rol": "output", "type": "q8_0"}]}, "recipes[1].pin: unknown field rules[1].rol"),
        (
            {"at_least": {"tg": 20}},
            "recipes[1].at_least.tg: it must be known which types are measured; name the candidate types "
            "under types",
        ),
    ):
        fit(**fields)(checkout)
        done = checkout.snakemake("-n")
        assert done.returncode == 1
        assert f"error: config.yaml: {said}" in done.stdout + done.stderr
