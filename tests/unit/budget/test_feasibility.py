"""What a budget can reach is told from the header alone, and is what the allocation reaches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from budget_data import DATA, POOL, damages_of
from quantmill.budget import feasibility
from quantmill.budget.allocate import fit
from quantmill.errors import QuantmillError
from quantmill.files import read_json
from quantmill.formats.ggufio import Header
from quantmill.progress import Log

Config = Callable[..., dict[str, Any]]


def told(config: dict[str, Any], folder: Path, model: str = "llama") -> dict[str, Any]:
    """What the stage writes."""
    args = argparse.Namespace(
        spec={"config": config}, model=DATA / f"tiny-{model}.gguf", out=folder / "r.json"
    )
    feasibility.main(args, Log(folder / "log"))
    return read_json(args.out)


@pytest.mark.parametrize("imatrix", [True, False])
@pytest.mark.parametrize("model", ["llama", "moe"])
def test_it_is_what_the_allocation_reaches(
    model: str, imatrix: bool, config: Config, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    header: Header = request.getfixturevalue(model)
    asked = config(
        {"bpw": 5.0}, at_least={"attn_v" if model == "llama" else "attn_qkv": "q4_K"},
        pin=[{"role": "token_embd", "type": "q6_K"}],
    )  # fmt: skip
    asked |= {} if imatrix else {"imatrix": None}
    pool = ("iq2_s", *POOL)
    found = told(asked | {"measured": list(pool)}, tmp_path, model)
    report = fit(header, damages_of(header, pool=pool), asked)[1]
    assert (found["least_bytes"], found["most_bytes"]) == (report["least_bytes"], report["most_bytes"])
    assert found["budget_bytes"] == report["budget"]["bytes"]
    for size, refused in ((found["least_bytes"], False), (found["least_bytes"] - 1, True)):
        asked["budget"] = {"size": size}
        if refused:
            with pytest.raises(QuantmillError, match="cannot be reached"):
                told(asked | {"measured": list(pool)}, tmp_path, model)
        else:
            assert told(asked | {"measured": list(pool)}, tmp_path, model)["least_bytes"] == size


def test_the_damage_that_is_added_up_does_not_matter(config: Config, tmp_path: Path) -> None:
    by_kld, by_error = (
        told(config({"bpw": 5.0}, damage=damage, measured=["q4_K", "q8_0"]), tmp_path)
        for damage in ("kld", "error")
    )
    assert by_kld == by_error
