"""What an allocation chooses between: for each group of tensors the types it may have, and their price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum, isnan
from typing import Any, Final, Protocol

import yaml

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import padded
from quantmill.formats.sensitivity import Damage
from quantmill.formats.types import fallback, known, named, needs_imatrix, tensor_bytes, writable
from quantmill.recipe import rules

HARMONIZE: Final = (
    ("ffn_gate", "ffn_up"),
    ("ffn_gate_exps", "ffn_up_exps"),
    ("ffn_gate_shexp", "ffn_up_shexp"),
)
"""Roles that share a type in a layer unless the recipe says otherwise: kernels fuse gate and up."""


class Tensor(Protocol):
    """What is asked of a tensor here: a row of a plan has it."""

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
    """What a budget recipe says of types; `pool` is empty for all types of the table of damages.

    `at_least` and `at_most` hold a type by role: no type of fewer, of more bits
    per weight is taken there. `damage` is the column that is added up.
    """

    pool: tuple[str, ...] = ()
    harmonize: tuple[tuple[str, ...], ...] = HARMONIZE
    at_least: Mapping[str, str] = field(default_factory=dict)
    at_most: Mapping[str, str] = field(default_factory=dict)
    engine: str = "mainline"
    damage: str = "kld"


@dataclass(frozen=True)
class Choice:
    """One type for a group: what each of its tensors really gets, and the sums over them.

    `type` is the pool's; `bytes` are padded; `rows` are the tensors' own of the table of damages.
    """

    type: str
    types: tuple[str, ...]
    bytes: int
    damage: float
    rows: tuple[Damage, ...]


@dataclass(frozen=True)
class Group:
    """Tensors that share a type, and the choices for them in the pool's order."""

    tensors: tuple[Tensor, ...]
    choices: tuple[Choice, ...]


def settings(config: Mapping[str, Any], where: str) -> Settings:
    """The settings of a recipe's fields: QuantmillError (naming the field) for a type or role that is none.

    `where` is the recipe's place in the user's file.
    """
    engine = config["engine"]
    for side in ("at_least", "at_most"):
        for role in config[side]:
            rules.check_role(role, f"{where}.{side}")
    for i, roles in enumerate(config["harmonize"] or []):
        for role in roles:
            rules.check_role(role, f"{where}.harmonize[{i}]")
    pool = [_type(kind, engine, f"{where}.types[{i}]") for i, kind in enumerate(config["types"] or [])]
    limits = {
        side: {role: _type(kind, engine, f"{where}.{side}.{role}") for role, kind in config[side].items()}
        for side in ("at_least", "at_most")
    }
    harmonize = HARMONIZE if config["harmonize"] is None else tuple(map(tuple, config["harmonize"]))
    return Settings(tuple(dict.fromkeys(pool)), harmonize, **limits, engine=engine, damage=config["damage"])


def parse_pins(pin: Sequence[Mapping[str, Any]], engine: str, where: str) -> rules.Recipe:
    """Rules of the recipe language; QuantmillError as for a recipe's own."""
    said = [{"why": "pinned", **rule} for rule in pin]
    return rules.parse(yaml.safe_dump({"engine": engine, "base": "q8_0", "rules": said}), where)


def check(config: Mapping[str, Any], where: str) -> None:
    """Refuse a recipe's fields for what can be said without the model: types, and the rules under `pin`."""
    settings(config, where)
    parse_pins(config["pin"], config["engine"], f"{where}.pin")


def groups(
    tensors: Iterable[Tensor],
    damages: Iterable[Damage],
    wanted: Settings,
    imatrix: frozenset[str] | None,
    where: str,
) -> list[Group]:
    """The groups of `tensors`, and what each may be.

    `imatrix` holds the names of the tensors that will have importance values,
    None where all will. Roles of one entry of `harmonize`
    form a group in each layer. QuantmillError for a tensor of which the damages
    know nothing, for a role that no tensor has, and where `at_least` and
    `at_most` leave a tensor no type.
    """
    rows: dict[tuple[str, str], Damage] = {(d.name, d.type): d for d in damages}
    tensors = list(tensors)
    _check_roles(wanted, tensors, where)
    # by bits and then by name, whatever order they were given in: of equals the first is taken
    pool = sorted(wanted.pool or {t for _, t in rows} & writable(wanted.engine), key=_by_bits)
    _check_known(wanted, tensors, rows, where)
    shared = {role: number for number, roles in enumerate(wanted.harmonize) for role in roles}
    members: dict[object, list[Tensor]] = {}
    for tensor in tensors:
        alone = tensor.role not in shared or tensor.layer < 0
        key = tensor.name if alone else (shared[tensor.role], tensor.layer)
        members.setdefault(key, []).append(tensor)
    known_names = {name for name, _ in rows}
    for tensor in tensors:
        if tensor.name not in known_names:
            raise QuantmillError(
                f"no damage is known of {tensor.name}", where, "give it a type under pin, or measure it"
            )
    return [_group(tuple(group), rows, pool, wanted, imatrix, where) for group in members.values()]


def _group(
    tensors: tuple[Tensor, ...],
    rows: Mapping[tuple[str, str], Damage],
    pool: Sequence[str],
    wanted: Settings,
    imatrix: frozenset[str] | None,
    where: str,
) -> Group:
    choices: dict[tuple[str, ...], Choice] = {}
    for kind in pool:
        found = [_damage(tensor, kind, rows, wanted) for tensor in tensors]
        if any(d is None for d in found):
            continue
        these = [d for d in found if d is not None]
        types = tuple(fallback(kind, tensor.shape[0], wanted.engine) for tensor in tensors)
        if types in choices or not all(map(_allowed, tensors, types, [wanted] * len(types))):
            continue
        if imatrix is not None and any(
            needs_imatrix(t, tensor.name) and tensor.name not in imatrix
            for t, tensor in zip(types, tensors, strict=True)
        ):
            continue
        choices[types] = Choice(
            type=kind,
            types=types,
            bytes=sum(padded(tensor_bytes(t, s.shape)) for t, s in zip(types, tensors, strict=True)),
            damage=fsum(_value(d, wanted.damage) for d in these),
            rows=tuple(these),
        )
    if not choices:
        names = " and ".join(tensor.name for tensor in tensors)
        roles = {tensor.role for tensor in tensors}
        limits = [
            f"{side}: {{{role}: {limit[role]}}}"
            for side, limit in (("at_least", wanted.at_least), ("at_most", wanted.at_most))
            for role in sorted(roles & limit.keys())
        ]
        cure = f"change {' or '.join(limits)}, or types" if limits else "add types, or give it one under pin"
        raise QuantmillError(f"no type of the pool is left for {names}", where, cure)
    return Group(tensors, tuple(choices.values()))


def _damage(
    tensor: Tensor, kind: str, rows: Mapping[tuple[str, str], Damage], wanted: Settings
) -> Damage | None:
    """What is known of a tensor at a type of the pool: of the type that it falls back to, if it does."""
    real = fallback(kind, tensor.shape[0], wanted.engine)
    row = rows.get((tensor.name, real)) or rows.get((tensor.name, kind))
    return None if row is None or isnan(_value(row, wanted.damage)) else row


def _allowed(tensor: Tensor, kind: str, wanted: Settings) -> bool:
    bits = known(kind).bits
    least, most = wanted.at_least.get(tensor.role), wanted.at_most.get(tensor.role)
    return (least is None or bits >= known(least).bits) and (most is None or bits <= known(most).bits)


def _value(row: Damage, damage: str) -> float:
    return row.damage if damage == "kld" else row.error


def _type(name: str, engine: str, where: str) -> str:
    """The type's own name; it must be one that the engine quantizes to."""
    kind = named(name)
    if kind is None:
        raise QuantmillError(f"unknown type {name}", where, "a type is such as q4_K; a preset is none")
    if kind not in writable(engine):
        raise QuantmillError(f"engine {engine} lacks the type {name}", where, "choose another type or engine")
    return kind


def _by_bits(kind: str) -> tuple[float, str]:
    return known(kind).bits, kind


def _check_known(
    wanted: Settings, tensors: Sequence[Tensor], rows: Mapping[tuple[str, str], Damage], where: str
) -> None:
    """Refuse a type of the recipe's pool of which nothing is known: it would never be taken."""
    for kind in wanted.pool:
        if all(_damage(tensor, kind, rows, wanted) is None for tensor in tensors):
            raise QuantmillError(
                f"nothing is known of the type {kind}", f"{where}.types",
                "leave it out, or add it to the types of the sensitivity",
            )  # fmt: skip


def _check_roles(wanted: Settings, tensors: Sequence[Tensor], where: str) -> None:
    have = {tensor.role for tensor in tensors}
    for side in ("at_least", "at_most"):
        for role in getattr(wanted, side):
            if role not in have:
                raise QuantmillError(
                    f"no tensor to be allocated has the role {role}",
                    f"{where}.{side}.{role}",
                    "the roles are " + ", ".join(sorted(have)),
                )
