"""Allocation at full scale: the row `allocate`, and published sensitivities allocated to a size.

    python benchmarks/allocation.py DIRECTORY --size 12.92 --types iq3_kt iq4_k q6_K

DIRECTORY holds `kld_results.csv`, `group0_kld_results.csv` and one
`*.tensors.tsv` (columns name n_dims ne0 ne1 ne2 ne3 dtype): shapes alone, no
model. Such a set is not part of the project; credit it where its figures are
shown.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterable
from math import prod
from pathlib import Path
from statistics import median

from quantmill.budget import merge
from quantmill.budget.allocate import allocate
from quantmill.budget.candidates import HARMONIZE, Settings, make_groups
from quantmill.files import read_table
from quantmill.formats.ggufio import padded
from quantmill.formats.plan import PlanRow
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.formats.types import known, tensor_bytes
from quantmill.model.roles import layer_of, role_of
from quantmill.sensitivity import imported
from rows import Bench, Row

GIB = 1 << 30
TYPES = ["iq3_kt", "iq3_k", "iq4_kt", "iq4_ks", "iq4_k", "iq5_k", "iq6_k", "q6_K", "q8_0"]


def allocate_row(bench: Bench) -> Iterable[Row]:
    """498 tensors of the shapes of a 27B hybrid, 9 types, made-up sensitivities, five sizes."""
    tensors = hybrid()
    draw = random.Random(1)
    table = []
    for row in tensors:
        gain = draw.lognormvariate(-7, 1)
        table += [
            SensitivityRow(
                name=row.name,
                role=row.role,
                layer=row.layer,
                shape=row.shape,
                type=kind,
                bytes=tensor_bytes(kind, row.shape),
                kld=gain * 4 ** (3 - known(kind).bits) * draw.lognormvariate(0, 0.2),
            )
            for kind in TYPES
        ]
    taken, gaps = [], []
    for _ in range(bench.repeat):
        for size in (10.5, 11, 12, 12.92, 16):
            start = time.perf_counter()
            groups = make_groups(tensors, table, Settings(engine="ik"), None, "benchmark")
            best = allocate(groups, 0, int(size * GIB), "benchmark")
            merge.merged(tensors, best.types)
            taken.append(time.perf_counter() - start)
            gaps.append(best.solution.gap)
    ours = f"{median(taken):.3g} s ({min(taken):.3g} to {max(taken):.3g})"
    checked = f"{len(tensors)} tensors, {len(TYPES)} types; largest gap {max(gaps):.1g}"
    yield Row("an allocation", ours, "", "", "≤ 5 s, each", max(taken) <= 5, checked)


def hybrid() -> list[PlanRow]:
    """The 498 quantizable tensors of a 27B hybrid of 64 layers, every fourth with full attention."""
    hidden, wide, vocabulary = 5120, 17408, 248320
    shapes = {"token_embd": (hidden, vocabulary), "output": (hidden, vocabulary)}
    ffn = {"ffn_gate": (hidden, wide), "ffn_up": (hidden, wide), "ffn_down": (wide, hidden)}
    full = {
        "attn_q": (hidden, 12288),
        "attn_k": (hidden, 1024),
        "attn_v": (hidden, 1024),
        "attn_output": (6144, hidden),
    }
    linear = {
        "attn_qkv": (hidden, 10240),
        "attn_gate": (hidden, 6144),
        "ssm_out": (6144, hidden),
        "ssm_alpha": (hidden, 48),
        "ssm_beta": (hidden, 48),
    }
    for layer in range(64):
        roles = ffn | (full if layer % 4 == 3 else linear)
        shapes |= {f"blk.{layer}.{role}": shape for role, shape in roles.items()}
    return [
        PlanRow(f"{name}.weight", role_of(f"{name}.weight"), layer_of(name), shape, "bf16", "bf16", 0, "")
        for name, shape in shapes.items()
    ]


def shapes(folder: Path) -> list[PlanRow]:
    """The tensors of a `*.tensors.tsv`, as rows of a plan."""
    (path,) = folder.glob("*.tensors.tsv")
    rows = []
    for row in read_table(path):
        shape = tuple(int(row[f"ne{i}"]) for i in range(int(row["n_dims"])))
        kind = row["dtype"]
        size = tensor_bytes(kind, shape)
        name = row["name"]
        rows.append(PlanRow(name, role_of(name), layer_of(name), shape, kind, kind, size, ""))
    return rows


def main() -> None:
    """Allocate, and print the quality and the time."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--size", type=float, nargs="+", default=[12.92], help="GiB of all tensors")
    arguments.add_argument("--types", nargs="+", default=TYPES)
    arguments.add_argument("--engine", default="ik")
    args = arguments.parse_args()
    rows = shapes(args.folder)
    results = imported.read_results(args.folder / "kld_results.csv")
    measured = set().union(*results.values())
    free = [row for row in rows if row.name in measured]
    fixed = sum(padded(row.bytes) for row in rows if row.name not in measured)
    start = time.perf_counter()
    table = imported.convert(free, results, imported.read_curve(args.folder / "group0_kld_results.csv"))
    print(
        f"import: {len(table.rows)} sensitivities of {len(free)} tensors, {time.perf_counter() - start:.2f} s"
    )
    for warning in table.warnings:
        print(f"  warning: {warning}")
    parameters = sum(prod(row.shape) for row in rows)
    for size in args.size:
        for harmonize in (HARMONIZE, ()):
            start = time.perf_counter()
            settings = Settings(tuple(args.types), harmonize, engine=args.engine)
            groups = make_groups(free, table.rows, settings, None, "benchmark")
            best = allocate(groups, fixed, int(size * GIB), "benchmark")
            seconds = time.perf_counter() - start
            rules = merge.merged(free, best.types)
            print(
                f"{size} GiB{', gate and up alike' if harmonize else ''}: {len(groups)} groups,"
                f" cost {best.solution.cost:.9g}, bound {best.solution.bound:.9g},"
                f" gap {best.solution.gap:.1e}, {int(size * GIB) - best.bytes} bytes left,"
                f" {best.bytes * 8 / parameters:.4f} bpw, {len(rules)} rules, {seconds:.2f} s"
            )


if __name__ == "__main__":
    main()
