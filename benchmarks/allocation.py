"""Allocation at full scale: a set of sensitivities as GGUF-Tool-Suite publishes them, fitted to a size.

    python benchmarks/allocation.py DIRECTORY --size 12.92 --types iq3_kt iq4_k q6_K

DIRECTORY holds `kld_results.csv`, `group0_kld_results.csv` and one
`*.tensors.tsv` (columns name n_dims ne0 ne1 ne2 ne3 dtype): shapes alone, no
model. Such a set is not part of the project; credit it where its figures are
shown.
"""

from __future__ import annotations

import argparse
import time
from math import prod
from pathlib import Path

from quantmill.budget import imported, merge
from quantmill.budget.allocate import allocate
from quantmill.budget.choices import HARMONIZE, Settings, groups
from quantmill.files import read_table
from quantmill.model.ggufio import padded
from quantmill.model.roles import layer_of, role_of
from quantmill.model.types import tensor_bytes
from quantmill.recipe.table import PlanRow

GIB = 1 << 30
POOL = ["iq3_kt", "iq3_k", "iq4_kt", "iq4_ks", "iq4_k", "iq5_k", "iq6_k", "q6_K", "q8_0"]


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
    """Allocate, and say how well and how fast."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--size", type=float, nargs="+", default=[12.92], help="GiB of all tensors")
    arguments.add_argument("--types", nargs="+", default=POOL)
    arguments.add_argument("--engine", default="ik")
    args = arguments.parse_args()
    rows = shapes(args.folder)
    results = imported.read_results(args.folder / "kld_results.csv")
    measured = set().union(*results.values())
    free = [row for row in rows if row.name in measured]
    fixed = sum(padded(row.bytes) for row in rows if row.name not in measured)
    start = time.perf_counter()
    table = imported.damages(free, results, imported.read_curve(args.folder / "group0_kld_results.csv"))
    print(f"import: {len(table.damages)} damages of {len(free)} tensors, {time.perf_counter() - start:.2f} s")
    for warning in table.warnings:
        print(f"  warning: {warning}")
    parameters = sum(prod(row.shape) for row in rows)
    for size in args.size:
        for harmonize in (HARMONIZE, ()):
            start = time.perf_counter()
            wanted = Settings(tuple(args.types), harmonize, engine=args.engine)
            found = groups(free, table.damages, wanted, None, "benchmark")
            best = allocate(found, fixed, int(size * GIB), "benchmark")
            seconds = time.perf_counter() - start
            rules = merge.merged(free, best.types)
            print(
                f"{size} GiB{', gate and up alike' if harmonize else ''}: {len(found)} groups,"
                f" damage {best.solution.damage:.9g}, bound {best.solution.bound:.9g},"
                f" gap {best.solution.gap:.1e}, {int(size * GIB) - best.bytes} bytes left,"
                f" {best.bytes * 8 / parameters:.4f} bpw, {len(rules)} rules, {seconds:.2f} s"
            )


if __name__ == "__main__":
    main()
