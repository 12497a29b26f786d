"""The tiny models, and the config of an allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from budget_data import DATA
from quantmill.formats.ggufio import Header, read_header


@pytest.fixture(scope="session")
def llama() -> Header:
    """A dense model."""
    return read_header(DATA / "tiny-llama.gguf")


@pytest.fixture(scope="session")
def moe() -> Header:
    """A hybrid mixture of experts."""
    return read_header(DATA / "tiny-moe.gguf")


@pytest.fixture
def config() -> Callable[..., dict[str, Any]]:
    """The config of an allocation."""

    def make(budget: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "recipe": "fit",
            "budget": budget,
            "types": None,
            "harmonize": None,
            "pin": [],
            "at_least": {},
            "at_most": {},
            "engine": "mainline",
            "damage": "kld",
            "refit": [],
            "use_imatrix": "optional",
            "imatrix": {"file": "tiny-imatrix.gguf", "dataset": "calibration", "chunks": 4},
            **fields,
        }

    return make
