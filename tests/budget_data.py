"""Sensitivities of the tiny models: made up, the same every time."""

from __future__ import annotations

import random
from pathlib import Path

from quantmill.formats.ggufio import Header
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.formats.types import fallback, known, tensor_bytes
from quantmill.model.roles import layer_of, role_of

DATA = Path(__file__).parent / "data"
CANDIDATES = ("q2_K", "iq3_s", "q3_K", "iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0")
NEVER = ("norm", "ffn_gate_inp", "ffn_gate_inp_shexp", "ssm_conv1d")


def sensitivity_of(
    header: Header, seed: int = 1, types: tuple[str, ...] = CANDIDATES
) -> list[SensitivityRow]:
    """A row for each tensor and type: with more bits less divergence, as a rule."""
    draw = random.Random(seed)
    rows = []
    for tensor in header.tensors:
        if len(tensor.shape) < 2 or role_of(tensor.name) in NEVER:
            continue
        gain = draw.lognormvariate(-6, 1)
        for kind in dict.fromkeys(fallback(kind, tensor.shape[0]) for kind in types):
            kld = gain * 4 ** (2 - known(kind).bits) * draw.lognormvariate(0, 0.3)
            rows.append(
                SensitivityRow(
                    name=tensor.name,
                    role=role_of(tensor.name),
                    layer=layer_of(tensor.name),
                    shape=tensor.shape,
                    type=kind,
                    bytes=tensor_bytes(kind, tensor.shape),
                    error=kld * 3,
                    error_se=0.0,
                    kld=kld,
                    se=kld / 10,
                    how=draw.choice(("measured", "predicted")),
                )
            )
    return rows
