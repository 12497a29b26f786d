"""What an importance matrix covers: llama-imatrix's statistics, and what it saw too little of."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from quantmill.formats import ggufio, importance
from quantmill.formats.imatrix import UNDER_SAMPLED, Entry, Imatrix
from quantmill.formats.importance import ImatrixEntry, Statistics, UnderSampled
from quantmill.model import roles

# An expert with fewer tokens than this has a poor estimate of its columns'
# energy: about 1 % of what a dense tensor sees in 128 chunks of 512.
FLOOR_TOKENS = 640

_ACTIVE = 1e-5


def statistics(entry: Entry) -> Statistics:
    """The statistics that `llama-imatrix --show-statistics` prints, over the mean squares of the columns.

    Experts never seen are left out; all but the counts is None where no expert saw a token.
    """
    seen = np.broadcast_to(entry.counts > 0, len(entry.in_sum2))
    values = entry.mean()[seen].astype(np.float64).reshape(-1)
    none = (None,) * 8
    total, mean, sd, least, most, active, entropy, high = _measured(values) if values.size else none
    return {
        "columns": entry.in_sum2.shape[1],
        "matrices": len(entry.in_sum2),
        "count_min": int(entry.counts.min()),
        "count_max": int(entry.counts.max()),
        "sum": total,
        "mean": mean,
        "sd": sd,
        "min": least,
        "max": most,
        "active": active,
        "entropy": entropy,
        "z_over_1": high,
    }


def _measured(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Sum, mean, deviation, least, largest, share above 1e-5, entropy in bits, share of high values."""
    total, mean, sd = values.sum(), values.mean(), values.std()
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    entropy = -(shares * np.log2(shares)).sum()
    high = (values > mean + sd).mean() if sd > 0 else 0.0
    measured = (total, mean, sd, values.min(), values.max(), (values > _ACTIVE).mean(), entropy, high)
    return tuple(map(float, measured))


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Cosine of two entries' sums; None where their shapes differ or one is zero."""
    if one.shape != other.shape:
        return None
    a, b = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else None


def report(imatrix: Imatrix, header: ggufio.Header, why_missing: str) -> importance.Imatrix:
    """Of imatrix.json what follows from the imatrix: an entry's statistics each, coverage, warnings.

    `why_missing` ends the warning of tensors without an entry.
    """
    by_place = {(roles.role_of(name), roles.layer_of(name)): entry for name, entry in imatrix.entries.items()}
    rows: list[ImatrixEntry] = []
    for name, entry in imatrix.entries.items():
        role, layer = roles.role_of(name), roles.layer_of(name)
        before = by_place.get((role, layer - 1)) if layer > 0 else None
        rows.append(
            {
                "name": name,
                "role": role,
                "layer": layer,
                **statistics(entry),
                "cosine": None if before is None else cosine(entry.in_sum2, before.in_sum2),
            }
        )
    missing = unseen(imatrix, header)
    under: list[UnderSampled] = [
        {"name": name, "expert": expert, "count": int(count)}
        for name, entry in imatrix.entries.items()
        if len(entry.counts) > 1
        for expert, count in enumerate(entry.counts)
        if count < FLOOR_TOKENS
    ]
    return {
        "chunks": imatrix.chunks,
        "context": imatrix.context,
        "tokens": imatrix.chunks * imatrix.context,
        "entries": rows,
        "missing": missing,
        "experts_under_floor": under,
        "floor": FLOOR_TOKENS,
        "warnings": warnings(missing, under, why_missing),
    }


def unseen(imatrix: Imatrix, header: ggufio.Header) -> list[str]:
    """The matrices of the layers that have no entry, though they are there to be quantized.

    Converters keep what llama.cpp never quantizes (routers, convolutions) in f32,
    so f32 matrices count only where the whole source is f32.
    """
    matrices = [t for t in header.tensors if len(t.shape) > 1 and roles.layer_of(t.name) >= 0]
    plain = all(tensor.type == "f32" for tensor in matrices)
    return [t.name for t in matrices if t.name not in imatrix.entries and (plain or t.type != "f32")]


def warnings(missing: list[str], under: list[UnderSampled], why_missing: str) -> list[str]:
    """What a reader of the card must know, a sentence each."""
    sentences = []
    if missing:
        what = f"{len(missing)} quantizable tensors have no importance values ({shown(missing)})"
        sentences.append(f"{what}: {why_missing}")
    if under:
        tensors = Counter(row["name"] for row in under)
        never = sum(1 for row in under if row["count"] == 0)
        sentences.append(
            f"{len(under)} experts in {len(tensors)} tensors saw fewer than {FLOOR_TOKENS} tokens "
            f"({never} saw none): use more or more varied calibration text"
        )
        made_up = sum(1 for row in under if row["count"] < UNDER_SAMPLED)
        if made_up:
            sentences.append(
                f"{made_up} of them saw fewer than {UNDER_SAMPLED}: quantizing makes up what they lack with "
                "the mean over their tensor's experts (the imatrix files hold what was measured)"
            )
    return sentences


def shown(names: list[str]) -> str:
    """The first of the names."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
