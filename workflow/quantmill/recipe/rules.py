"""The recipe language: a base, and rules. The first rule that matches a tensor decides its type.

    engine: mainline
    base: Q4_K_M
    imatrix: required
    rules:
      - {role: ffn_down_exps, layers: [0, 1, 38, 39], type: q6_K, why: edge experts}
      - {match: 'blk\\.63\\.ffn_.*\\.weight', type: q5_K, why: last layer}

A rule that does nothing is an error. Published recipes with such rules were
identical to the plain preset.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

import yaml

from quantmill import yamlio
from quantmill.bounded import bounded
from quantmill.errors import QuantmillError
from quantmill.formats.ggufio import Header
from quantmill.formats.types import TYPES, named, writable
from quantmill.model.roles import CLASSES, ROLES, layer_of, role_of
from quantmill.recipe import presets

ENGINES: Final = ("mainline", "ik")
IMATRIX: Final = ("required", "optional", "none")

_RECIPE_FIELDS: Final = {
    "engine": str,
    "base": str,
    "imatrix": str,
    "scales": bool,
    "notes": list,
    "rules": list,
}
_RULE_FIELDS: Final = {
    "role": (str, list),
    "match": str,
    "layers": list,
    "type": str,
    "why": str,
    "optional": bool,
}
_ROLES: Final = sorted(ROLES)
_LISTED: Final = 40  # how many choices an error line lists
# A pattern that is one tensor's name. Recipes exported tensor by tensor have many: they need no search.
_ONE_NAME: Final = re.compile(r"(?:[\w-]|\\[.\-])+")


@dataclass(frozen=True)
class Rule:
    """One rule: a tensor must meet each of its conditions. `number` counts from 1."""

    number: int
    type: str
    roles: tuple[str, ...] = ()
    match: str | None = None
    layers: tuple[int, ...] | None = None
    why: str = ""
    optional: bool = False

    @property
    def label(self) -> str:
        """`rule 3: edge experts`."""
        return f"rule {self.number}: {self.why}" if self.why else f"rule {self.number}"

    def matches(self, name: str) -> bool:
        """Whether the tensor meets the conditions."""
        return bool(self.matching([name], {name}))

    def matching(self, names: Sequence[str], known: Collection[str]) -> list[str]:
        """The tensors among `names` that meet the conditions; `known` is the set of the names."""
        matched = list(names)
        if self.match is not None and _ONE_NAME.fullmatch(self.match):
            name = self.match.replace("\\", "")
            matched = [name] if name in known else []
        elif self.match is not None:
            fullmatch = re.compile(self.match).fullmatch
            matched = [name for name in matched if fullmatch(name)]
        if self.roles:
            matched = [name for name in matched if role_of(name) in self.roles]
        if self.layers is not None:
            layers = frozenset(self.layers)
            matched = [name for name in matched if layer_of(name) in layers]
        return matched


@dataclass(frozen=True)
class Recipe:
    """A rendered recipe."""

    engine: str
    base: presets.Base
    imatrix: str
    rules: tuple[Rule, ...]
    notes: tuple[str, ...] = ()
    """Warnings of whoever made it, for its plan."""
    scales: bool = True
    """Whether nvfp4 weights get per-tensor scales where llama.cpp applies them."""


def parse(text: str, where: object) -> Recipe:
    """The recipe in YAML `text`; `where` is its file, for errors.

    QuantmillError, with the field's path, for unknown fields, types and roles,
    wrong kinds of values, broken regular expressions, rules without a condition.
    """
    fields = yamlio.load(text, where)
    if not isinstance(fields, dict):
        raise QuantmillError("no recipe", where, "it takes the fields " + ", ".join(_RECIPE_FIELDS))
    fields = {key: [] if key == "rules" and value is None else value for key, value in fields.items()}
    _check_fields(fields, _RECIPE_FIELDS, "", where)
    if "base" not in fields:
        raise QuantmillError("field base is missing", where, "name a preset, such as base: Q4_K_M")
    engine = _one_of(fields.get("engine", "mainline"), ENGINES, "engine", where)
    return Recipe(
        engine=engine,
        base=presets.resolve(fields["base"], where, engine),
        imatrix=_one_of(fields.get("imatrix", "optional"), IMATRIX, "imatrix", where),
        rules=tuple(
            _rule(number, rule, engine, where) for number, rule in enumerate(fields.get("rules", []), start=1)
        ),
        notes=tuple(" ".join(str(note).split()) for note in fields.get("notes", [])),
        scales=fields.get("scales", True),
    )


def dump(recipe: Recipe) -> str:
    """The recipe as canonical YAML text, which `parse` reads back."""
    rules = []
    for rule in recipe.rules:
        fields: dict[str, Any] = {}
        if rule.roles:
            fields["role"] = rule.roles[0] if len(rule.roles) == 1 else list(rule.roles)
        if rule.match is not None:
            fields["match"] = rule.match
        if rule.layers is not None:
            fields["layers"] = list(rule.layers)
        fields["type"] = rule.type
        if rule.why:
            fields["why"] = rule.why
        if rule.optional:
            fields["optional"] = True
        rules.append(fields)
    head: dict[str, Any] = {"engine": recipe.engine, "base": recipe.base.name, "imatrix": recipe.imatrix}
    if not recipe.scales:
        head["scales"] = False
    if recipe.notes:
        head["notes"] = list(recipe.notes)
    return yaml.safe_dump(head, sort_keys=False, width=10**6, allow_unicode=True) + _dump_rules(rules)


def assign(recipe: Recipe, header: Header, quantizable: frozenset[str], where: object) -> dict[str, Rule]:
    """The rule of each tensor that a rule decides, by name.

    Tensors that are never quantized have no rule. QuantmillError, with the
    rule's number, for a layer that the model does not have. So too, unless the
    rule is optional, where it matches no tensor, only tensors that are never
    quantized, or only tensors that earlier rules decide.
    """
    names = [tensor.name for tensor in header.tensors]
    known = frozenset(names)
    layers = 1 + max(map(layer_of, names), default=-1)
    decided: dict[str, Rule] = {}
    for rule in recipe.rules:
        here = f"{where}: {rule.label}"
        beyond = [layer for layer in rule.layers or () if not 0 <= layer < layers]
        if beyond:
            raise QuantmillError(
                f"the model has no layer {beyond[0]}", here, f"its layers are 0 to {layers - 1}"
            )
        with bounded(f"`{rule.match}`", here, "write it without repeats of repeats, such as (a+)+"):
            matched = rule.matching(names, known)
        changeable = [name for name in matched if name in quantizable]
        free = [name for name in changeable if name not in decided]
        if not free and not rule.optional:
            raise _idle(rule, names, matched, [decided[name] for name in changeable], here)
        decided |= dict.fromkeys(free, rule)
    return decided


def _idle(rule: Rule, names: list[str], matched: list[str], before: list[Rule], here: str) -> QuantmillError:
    """The error of a rule that decides nothing."""
    if before:
        numbers = sorted({other.number for other in before})
        which = f"rule {numbers[0]}" if len(numbers) == 1 else "rules " + ", ".join(map(str, numbers))
        return QuantmillError(
            f"wholly shadowed by {which}", here, "move it up, remove it, or say `optional: true`"
        )
    if matched:
        return QuantmillError(
            f"matches only tensors that are never quantized, such as {matched[0]}", here, "remove it"
        )
    present = {role_of(name) for name in names}
    if rule.roles and not present & set(rule.roles):
        have = ", ".join(sorted(present - CLASSES))
        cure = f"take one of the model's roles ({have}), or say `optional: true`"
        return QuantmillError("matches no tensor", here, cure)
    hint = "a match is of the whole name, such as 'blk\\.3\\.attn_q\\.weight'; " if rule.match else ""
    return QuantmillError("matches no tensor", here, f"{hint}correct it, or say `optional: true`")


def _rule(number: int, fields: Any, engine: str, where: object) -> Rule:
    here = f"rules[{number}]"
    if not isinstance(fields, dict):
        raise QuantmillError(f"field {here} is no mapping", where, "such as {role: output, type: q8_0}")
    _check_fields(fields, _RULE_FIELDS, f"{here}.", where)
    if "type" not in fields:
        raise QuantmillError(f"field {here}.type is missing", where, "name a type, such as q6_K")
    if "role" not in fields and "match" not in fields:
        raise QuantmillError(f"{here} has neither role nor match", where, "say which tensors it is for")
    layers = fields.get("layers")
    if layers is not None and not all(isinstance(n, int) and not isinstance(n, bool) for n in layers):
        raise QuantmillError(f"field {here}.layers is no list of layer numbers", where, "such as [0, 1, 2]")
    role = fields.get("role", [])
    roles = tuple(role) if isinstance(role, list) else (role,)
    if role == [] and "role" in fields:
        raise QuantmillError(f"field {here}.role is an empty list", where, "name a role or leave it out")
    for name in roles:
        _one_of(name, _ROLES, f"{here}.role", where)
    match = fields.get("match")
    try:
        re.compile(match or "")
    except re.error as error:
        raise QuantmillError(
            f"field {here}.match is no regular expression ({error})", where, r"a dot is written \."
        ) from None
    return Rule(
        number=number,
        type=known_type(fields["type"], f"{here}.type", where, engine),
        roles=roles,
        match=match,
        layers=None if layers is None else tuple(layers),
        why=" ".join(fields.get("why", "").split()),
        optional=fields.get("optional", False),
    )


def known_type(name: str, field: str, where: object, engine: str = "mainline") -> str:
    """The ggml type's own name for `name`, in any case. QuantmillError where it cannot be quantized to."""
    known = named(name)
    if known in writable(engine):
        return known
    if known is not None and (known in writable("ik") or known in writable("mainline")):
        cure = (
            "choose another" if engine != "mainline" else "choose a type of mainline llama.cpp, or engine: ik"
        )
        raise QuantmillError(f"field {field}: engine {engine} lacks the type {name}", where, cure)
    if known in TYPES:
        raise QuantmillError(f"field {field}: {known} cannot be quantized to", where, "choose another type")
    if name.upper() in presets.PRESETS:
        raise QuantmillError(
            f"field {field}: {name} is a preset (a mixture), not a type", where, "name a type, such as q4_K"
        )
    raise QuantmillError(f"field {field}: unknown type {name}", where, _meant(name, sorted(writable(engine))))


def check_role(name: str, where: object) -> None:
    """QuantmillError where no tensor of any model can have the role."""
    if name not in ROLES:
        raise QuantmillError(f"unknown role {name}", where, _meant(name, _ROLES))


def _check_fields(fields: dict[Any, Any], known: dict[str, Any], prefix: str, where: object) -> None:
    for key, value in fields.items():
        if key not in known:
            raise QuantmillError(f"unknown field {prefix}{key}", where, _meant(str(key), list(known)))
        if not isinstance(value, known[key]):
            kinds = known[key] if isinstance(known[key], tuple) else (known[key],)
            expected = " or ".join(
                {str: "text", list: "a list", bool: "true or false"}[kind] for kind in kinds
            )
            raise QuantmillError(f"field {prefix}{key} is {value!r}", where, f"it takes {expected}")


def _one_of(value: Any, known: Sequence[str], field: str, where: object) -> str:
    if value not in known:
        raise QuantmillError(f"field {field}: unknown value {value}", where, _meant(str(value), list(known)))
    return str(value)


def _meant(value: str, known: list[str]) -> str:
    near = get_close_matches(value, known, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return "it is one of " + ", ".join(known[:_LISTED]) + (", ..." if len(known) > _LISTED else "")


def _dump_rules(rules: list[dict[str, Any]]) -> str:
    """A rule a line, as people write them."""
    if not rules:
        return "rules: []\n"
    style: dict[str, Any] = {"default_flow_style": True, "width": 10**6, "allow_unicode": True}
    return "rules:\n" + "".join(f"  - {yaml.safe_dump(rule, sort_keys=False, **style)}" for rule in rules)
