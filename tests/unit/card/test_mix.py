"""The type mix of files: bits by role, and which tensors have more or fewer than the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantmill.card import mix
from quantmill.judge.results import read

Tree = tuple[Path, dict[str, Any]]


def test_bits_by_role_and_what_is_protected(tree: Tree) -> None:
    quant = next(quant for quant in read(*tree).quants if quant.name == "Q4_K_M")
    bits = mix.bits_by_role(quant)
    assert bits["attn_q"] == pytest.approx(4.5)
    assert bits["ffn_down"] == pytest.approx((4.5 + 6.5625) / 2)
    assert "attn_norm" not in bits
    above, below = mix.uneven(quant)
    assert above == [
        "`token_embd` (q6_K)",
        "`attn_k` (q5_0, 4 of 4)",
        "`attn_v` (q6_K, 4 of 4)",
        "`ffn_down` (q6_K, 2 of 4)",
    ]
    assert below == []
