"""What types and roles have of a file, for the report of its plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quantmill.formats import allocation as formats
from quantmill.formats.plan import PlanRow


def by_type(rows: Sequence[PlanRow]) -> list[formats.OfType]:
    """The share of each type of the file."""
    shares: list[formats.OfType] = []
    for kind in {row.type for row in rows}:
        of_type = [row for row in rows if row.type == kind]
        shares.append(
            {
                "type": kind,
                "tensors": len(of_type),
                "bytes": sum(row.bytes for row in of_type),
                "parameters": sum(row.elements for row in of_type),
                "roles": sorted({row.role for row in of_type}),
            }
        )
    return sorted(shares, key=lambda entry: (-entry["bytes"], entry["type"]))


def by_role(rows: Sequence[PlanRow]) -> list[formats.OfRole]:
    """The share of each role, and the range of bits per weight over its tensors."""
    roles: dict[str, list[PlanRow]] = {}
    for row in rows:
        roles.setdefault(row.role, []).append(row)
    shares: list[formats.OfRole] = []
    for role, of_role in roles.items():
        size, parameters = sum(row.bytes for row in of_role), sum(row.elements for row in of_role)
        bits = [row.bytes * 8 / row.elements for row in of_role]
        shares.append(
            {
                "role": role,
                "tensors": len(of_role),
                "bytes": size,
                "parameters": parameters,
                "bpw": size * 8 / parameters,
                "least": min(bits),
                "most": max(bits),
                "types": dict(sorted(Counter(row.type for row in of_role).items())),
            }
        )
    return sorted(shares, key=lambda entry: (-entry["bytes"], entry["role"]))
