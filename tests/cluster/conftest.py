"""What the runs on a cluster share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkout import Checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A small config: two files, their divergences, one speed."""

    def small(config: dict[str, Any]) -> None:
        del config["sensitivity"], config["corpora"]["tuning"]
        config["bench"] = {"kld": config["bench"]["kld"]}
        config["imatrix"]["chunks"] = 17

    made = Checkout.build(tmp_path / "checkout")
    made.configure(small)
    return made
