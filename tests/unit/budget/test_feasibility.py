"""The range of sizes follows from the header alone, and is that of the allocation."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_data import CANDIDATES, DATA, sensitivity_of
from quantmill.budget import feasibility
from quantmill.budget.allocate import size_targeted
from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.ggufio import Header
from quantmill.progress import Log

Config = Callable[..., dict[str, Any]]


def stage_report(config: dict[str, Any], folder: Path, model: str = "llama") -> dict[str, Any]:
    """What the stage writes."""
    args = argparse.Namespace(
        spec={"config": config},
        model=DATA / f"tiny-{model}.gguf",
        grids=None,
        speeds=None,
        out=folder / "r.json",
    )
    feasibility.main(args, Log(folder / "log"))
    return read_json(args.out)


@pytest.mark.parametrize("imatrix", [True, False])
@pytest.mark.parametrize("model", ["llama", "moe"])
def test_it_is_the_range_of_the_allocation(
    model: str, imatrix: bool, config: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    header: Header = request.getfixturevalue(model)
    spec = config(
        {"bpw": 5.0},
        at_least={"attn_v" if model == "llama" else "attn_qkv": "q4_K"},
        pin=[{"role": "token_embd", "type": "q6_K"}],
    )
    spec |= {} if imatrix else {"imatrix": None}
    types = ("iq2_s", *CANDIDATES)
    report = stage_report(spec | {"measured": list(types)}, tmp_path, model)
    allocation = size_targeted(header, sensitivity_of(header, types=types), spec)[1]
    assert (report["least_bytes"], report["most_bytes"]) == (
        allocation["least_bytes"],
        allocation["most_bytes"],
    )
    assert report["budget_bytes"] == allocation["budget"]["bytes"]
    for size, refused in ((report["least_bytes"], False), (report["least_bytes"] - 1, True)):
        spec["budget"] = {"size": size}
        if refused:
            with pytest.raises(QuantmillError, match="cannot be reached"):
                stage_report(spec | {"measured": list(types)}, tmp_path, model)
        else:
            assert stage_report(spec | {"measured": list(types)}, tmp_path, model)["least_bytes"] == size


def test_the_objective_does_not_matter(config: Config, tmp_path: Path) -> None:
    by_kld, by_error = (
        stage_report(config({"bpw": 5.0}, damage=objective, measured=["q4_K", "q8_0"]), tmp_path)
        for objective in ("kld", "error")
    )
    assert by_kld == by_error
