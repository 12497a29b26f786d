"""The types of the draft head (multi-token prediction), which a recipe may give apart from all others.

They become the first rules of the rendered recipe, or pins of a size-targeted one: those of a role before
those of a group of roles, `type` for all that is left.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal

from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.formats.settings import Mtp
from quantmill.model.roles import CLASSES, GROUPS, ROLES, layer_of, role_of
from quantmill.recipe import rules

ALL: Final = "type"
_WHY: Final = "draft head"
REFUSED_BY_IK: Final = (
    "the pinned ik_llama.cpp refuses files with a draft head, and measures copies without it; "
    "mtp: none leaves it out"
)


def check(mtp: Mtp, engine: str, where: str) -> None:
    """QuantmillError for what is wrong with the field whatever the model: unknown roles and types."""
    if mtp == "only" and engine != "mainline":
        what = f"engine {engine} takes no draft head in a file of its own"
        raise QuantmillError(what, f"{where}: mtp", "leave it out, or choose a template of llama.cpp")
    if isinstance(mtp, str):
        return
    for name, kind in mtp.items():
        if name != ALL and name not in GROUPS and name not in ROLES:
            cure = f"it takes type, a role such as attn_q, or one of {', '.join(GROUPS)}"
            raise QuantmillError(f"unknown role {name}", f"{where}: mtp", cure)
        rules.known_type(kind, f"mtp.{name}", where, engine)


def check_model(header: Header, mtp: Mtp, where: str) -> None:
    """QuantmillError for a model without a head, and for a role that the head has no tensor of."""
    if not header.has_mtp:
        what = "the model has no draft head (no layer of multi-token prediction)"
        raise QuantmillError(what, f"{where}: mtp", "leave `mtp` out")
    present = _roles(header)
    for name in mtp if isinstance(mtp, dict) else ():
        if name != ALL and not present & _meant(name):
            roles = ", ".join(sorted(present - CLASSES | {"nextn"}))
            cure = f"take one of its roles ({roles}), or `type` for all"
            raise QuantmillError(f"the draft head has no tensor of {name}", f"{where}: mtp.{name}", cure)


def head_rules(header: Header, mtp: dict[str, str], engine: str, where: str) -> tuple[rules.Rule, ...]:
    """The rules for the head of a model, numbered from 1. QuantmillError as `check` and `check_model` say."""
    check(mtp, engine, where)
    check_model(header, mtp, where)
    present, layers = _roles(header), tuple(range(header.evaluated, header.layers))
    made = []
    for number, name in enumerate(sorted(mtp, key=_general_last), start=1):
        kind = rules.known_type(mtp[name], f"mtp.{name}", where, engine)
        rule = rules.Rule(number, kind, layers=layers, why=_WHY)
        if name == ALL:
            listed = "|".join(map(str, layers))
            match = rf"blk\.{listed}\..*" if len(layers) == 1 else rf"blk\.({listed})\..*"
            made.append(replace(rule, layers=None, match=match))
        else:
            made.append(replace(rule, roles=tuple(sorted(present & _meant(name)))))
    return tuple(made)


def with_head(recipe: rules.Recipe, header: Header, mtp: Mtp | None, where: str) -> rules.Recipe:
    """The recipe with the rules for the head before its own."""
    if mtp is None:
        return recipe
    if isinstance(mtp, str):
        check_model(header, mtp, where)
        return recipe
    first = head_rules(header, mtp, recipe.engine, where)
    own = (replace(rule, number=rule.number + len(first)) for rule in recipe.rules)
    return replace(recipe, rules=(*first, *own))


def file_part(mtp: Mtp | None) -> Literal["none", "only"] | None:
    """`none` or `only`, where the file has not all of the model."""
    return mtp if isinstance(mtp, str) else None


def _roles(header: Header) -> set[str]:
    """The roles of the head's tensors."""
    return {role_of(t.name) for t in header.tensors if layer_of(t.name) >= header.evaluated}


def _meant(name: str) -> set[str]:
    """The roles that a name stands for: those of a group, or the one of that name."""
    return set(GROUPS.get(name, (name,)))


def _general_last(name: str) -> tuple[int, str]:
    return (2 if name == ALL else 1 if name in GROUPS and GROUPS[name] != (name,) else 0), name
