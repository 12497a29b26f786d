"""The choices of an allocation: groups of tensors, and the types that each may have, with bytes and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isnan
from typing import Any, Final, Protocol

import yaml

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import padded
from quantmill.formats.sensitivity import SensitivityRow
from quantmill.formats.settings import Allocate
from quantmill.formats.types import (
    NO_GRID,
    fallback,
    known,
    named,
    needs_imatrix,
    takes_feedback,
    tensor_bytes,
    writable,
)
from quantmill.recipe import rules

HARMONIZE: Final = (
    ("ffn_gate", "ffn_up"),
    ("ffn_gate_exps", "ffn_up_exps"),
    ("ffn_gate_shexp", "ffn_up_shexp"),
)
"""Roles that share a type in a layer unless the recipe says otherwise: kernels fuse gate and up."""


class Tensor(Protocol):
    """The fields of a tensor that are read here; a row of a plan has them."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Settings:
    """What a size-targeted recipe says of types.

    `types` are the candidate types; empty for all types of the table of
    sensitivities. `at_least` and `at_most` limit the type of a role, by bits
    per weight. `objective` is what is added up: kld or error. `fed_back`: the file
    is rounded with error feedback, to which not all types lend themselves. `kept` are the
    types of tensors that lie on their grids, at no cost.
    """

    types: tuple[str, ...] = ()
    harmonize: tuple[tuple[str, ...], ...] = HARMONIZE
    at_least: Mapping[str, str] = field(default_factory=dict)
    at_most: Mapping[str, str] = field(default_factory=dict)
    engine: str = "mainline"
    objective: str = "kld"
    fed_back: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def takes(self) -> frozenset[str]:
        """The types that the file may have."""
        types = writable(self.engine)
        if not self.fed_back:
            return types
        return frozenset(kind for kind in types if takes_feedback(kind, self.engine))

    def cost(self, row: SensitivityRow) -> float:
        """What a row adds to the sum that is minimized."""
        return row.delta_kld if self.objective == "kld" else row.error

    def allows(self, role: str, kind: str) -> bool:
        """Whether the type is within the limits of the role."""
        bits = known(kind).bits
        least, most = self.at_least.get(role), self.at_most.get(role)
        return (least is None or bits >= known(least).bits) and (most is None or bits <= known(most).bits)

    def limits(self, roles: Iterable[str]) -> list[str]:
        """The limits of these roles, as the user wrote them."""
        sides = (("at_least", self.at_least), ("at_most", self.at_most))
        return [
            f"{side}: {{{role}: {limit[role]}}}"
            for side, limit in sides
            for role in sorted(limit.keys() & set(roles))
        ]


@dataclass(frozen=True)
class Choice:
    """One type for a group.

    `type` is the candidate type, `types` the type that each tensor gets: a
    fallback where the rows do not fit. `bytes` are padded. `bytes` and `cost` are
    sums over the tensors, `rows` are their rows of the table of sensitivities.
    """

    type: str
    types: tuple[str, ...]
    bytes: int
    cost: float
    rows: tuple[SensitivityRow, ...]


@dataclass(frozen=True)
class Group:
    """Tensors that share a type, and their choices, fewest bits per weight first."""

    tensors: tuple[Tensor, ...]
    choices: tuple[Choice, ...]


def parse_settings(spec: Allocate, where: str) -> Settings:
    """The settings of a recipe's fields. QuantmillError, with the field, for an unknown type or role.

    `where` is the recipe's place in the user's file.
    """
    engine = spec["engine"]
    limits = {"at_least": spec["at_least"], "at_most": spec["at_most"]}
    for side, by_role in limits.items():
        for role in by_role:
            rules.check_role(role, f"{where}.{side}")
    for i, roles in enumerate(spec["harmonize"] or []):
        for role in roles:
            rules.check_role(role, f"{where}.harmonize[{i}]")
    types = [_type(kind, engine, f"{where}.types[{i}]") for i, kind in enumerate(spec["types"] or [])]
    if "rounding" in spec:
        for i, kind in enumerate(types):
            _check_feedback(kind, engine, f"{where}.types[{i}]")
    parsed = {
        side: {role: _type(kind, engine, f"{where}.{side}.{role}") for role, kind in by_role.items()}
        for side, by_role in limits.items()
    }
    return Settings(
        types=tuple(dict.fromkeys(types)),
        harmonize=HARMONIZE if spec["harmonize"] is None else tuple(map(tuple, spec["harmonize"])),
        at_least=parsed["at_least"],
        at_most=parsed["at_most"],
        engine=engine,
        objective=spec["damage"],
        fed_back="rounding" in spec,
    )


def parse_pins(pin: Sequence[Mapping[str, Any]], engine: str, where: str) -> rules.Recipe:
    """The rules under `pin`, in the recipe language. QuantmillError as for a recipe's own."""
    pins = [{"why": "pinned", **rule} for rule in pin]
    return rules.parse(yaml.safe_dump({"engine": engine, "base": "q8_0", "rules": pins}), where)


def check(spec: Allocate, where: str) -> None:
    """Refuse what is wrong with a recipe's fields whatever the model: types, and the rules under `pin`."""
    parse_settings(spec, where)
    pins = parse_pins(spec["pin"], spec["engine"], f"{where}.pin")
    if "rounding" in spec:
        for number, pin in enumerate(pins.rules):
            _check_feedback(pin.type, pins.engine, f"{where}.pin[{number}]")


def make_groups(
    tensors: Iterable[Tensor],
    table: Iterable[SensitivityRow],
    settings: Settings,
    imatrix: frozenset[str] | None,
    where: str,
) -> list[Group]:
    """The groups of `tensors` with their choices.

    `imatrix` holds the names of the tensors that will have importance values;
    None for all. Roles of one entry of `harmonize` form a group in each layer.
    QuantmillError for a tensor without a sensitivity, for a limited role that no
    tensor has, for a candidate type without a sensitivity, and where the limits
    leave a tensor no type.
    """
    tensors = list(tensors)
    rows = {(row.name, row.type): row for row in table}
    _check_roles(settings, tensors, where)
    # Sorted, so that their order in the config does not matter: of equal choices the first is taken.
    types = sorted(settings.types or {t for _, t in rows} & settings.takes, key=_by_bits)

    def row_of(tensor: Tensor, kind: str) -> SensitivityRow | None:
        """The row of a tensor at the type that it really gets; None where its cost is not known."""
        real = fallback(kind, tensor.shape[0], settings.engine)
        if settings.kept.get(tensor.name) == real:
            return _kept_row(tensor, real)
        row = rows.get((tensor.name, real)) or rows.get((tensor.name, kind))
        return None if row is None or isnan(settings.cost(row)) else row

    for kind in settings.types:
        if all(row_of(tensor, kind) is None for tensor in tensors):
            cure = "leave it out, or add it to the types of the sensitivity"
            raise QuantmillError(f"the type {kind} has no sensitivities", f"{where}.types", cure)
    names = {name for name, _ in rows} | settings.kept.keys()
    for tensor in tensors:
        if tensor.name not in names:
            cure = "give it a type under pin, or measure it"
            raise QuantmillError(f"{tensor.name} has no sensitivity", where, cure)
    return [
        Group(group, _choices(group, _with_kept(types, group, settings), row_of, settings, imatrix, where))
        for group in _grouped(tensors, settings.harmonize)
    ]


def _kept_row(tensor: Tensor, kind: str) -> SensitivityRow:
    """That a tensor loses nothing at a type."""
    size = tensor_bytes(kind, tensor.shape)
    return SensitivityRow(
        *(tensor.name, tensor.role, tensor.layer, tensor.shape, kind, size), 0.0, 0.0, 0.0, 0.0, "kept"
    )


def _with_kept(types: Sequence[str], tensors: Iterable[Tensor], settings: Settings) -> list[str]:
    """The candidate types, and those at which one of the tensors loses nothing."""
    own = {settings.kept[tensor.name] for tensor in tensors if tensor.name in settings.kept}
    return sorted({*types, *own}, key=_by_bits)


def _grouped(tensors: Iterable[Tensor], harmonize: Sequence[Sequence[str]]) -> list[tuple[Tensor, ...]]:
    """The tensors that share a type, together."""
    shared = {role: number for number, roles in enumerate(harmonize) for role in roles}
    members: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        alone = tensor.role not in shared or tensor.layer < 0
        key = tensor.name if alone else (shared[tensor.role], tensor.layer)
        members.setdefault(key, []).append(tensor)
    return list(map(tuple, members.values()))


def _choices(
    tensors: tuple[Tensor, ...],
    candidates: Sequence[str],
    row_of: Callable[[Tensor, str], SensitivityRow | None],
    settings: Settings,
    imatrix: frozenset[str] | None,
    where: str,
) -> tuple[Choice, ...]:
    """The choices of a group. Each mix of real types stands once, under its first candidate type."""
    choices: dict[tuple[str, ...], Choice] = {}
    for candidate in candidates:
        rows = [row for tensor in tensors if (row := row_of(tensor, candidate)) is not None]
        if len(rows) < len(tensors):
            continue
        types = tuple(fallback(candidate, tensor.shape[0], settings.engine) for tensor in tensors)
        pairs = list(zip(tensors, types, strict=True))
        if types in choices or not all(settings.allows(tensor.role, kind) for tensor, kind in pairs):
            continue
        if imatrix is not None and any(
            needs_imatrix(kind, tensor.name) and tensor.name not in imatrix for tensor, kind in pairs
        ):
            continue
        choices[types] = Choice(
            type=candidate,
            types=types,
            bytes=sum(padded(tensor_bytes(kind, tensor.shape)) for tensor, kind in pairs),
            cost=fsum(map(settings.cost, rows)),
            rows=tuple(rows),
        )
    if not choices:
        limits = settings.limits(tensor.role for tensor in tensors)
        cure = f"change {' or '.join(limits)}, or types" if limits else "add types, or give it one under pin"
        names = " and ".join(tensor.name for tensor in tensors)
        raise QuantmillError(f"no candidate type is left for {names}", where, cure)
    return tuple(choices.values())


def _type(name: str, engine: str, where: str) -> str:
    """The type's own name. QuantmillError where the engine cannot quantize to it."""
    kind = named(name)
    if kind is None:
        raise QuantmillError(f"unknown type {name}", where, "name a type such as q4_K, not a preset")
    if kind not in writable(engine):
        raise QuantmillError(f"engine {engine} lacks the type {name}", where, "choose another type or engine")
    return kind


def _check_feedback(kind: str, engine: str, where: str) -> None:
    """Refuse a type to which `rounding: gptq` cannot round."""
    if not takes_feedback(kind, engine):
        cure = "choose another type, or give the recipe rounding: nearest"
        raise QuantmillError(f"{kind} {NO_GRID}", where, cure)


def _by_bits(kind: str) -> tuple[float, str]:
    return known(kind).bits, kind


def _check_roles(settings: Settings, tensors: Sequence[Tensor], where: str) -> None:
    """Refuse a limit for a role that no tensor has."""
    present = {tensor.role for tensor in tensors}
    for side, limit in (("at_least", settings.at_least), ("at_most", settings.at_most)):
        for role in limit:
            if role not in present:
                raise QuantmillError(
                    f"no tensor to be allocated has the role {role}",
                    f"{where}.{side}.{role}",
                    "the roles are " + ", ".join(sorted(present)),
                )
