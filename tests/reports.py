"""Reports for tests that need a few of their fields: the rest is filled with neutral values."""

from __future__ import annotations

import hashlib
from types import NoneType, UnionType
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, is_typeddict

from quantmill.formats.report import fields


def sha(text: str) -> str:
    """The sha256 of a made-up file."""
    return hashlib.sha256(text.encode()).hexdigest()


def complete(kind: Any, given: dict[str, Any]) -> dict[str, Any]:
    """`given` with every required field of the TypedDict `kind`; those that it lacks are neutral."""
    values = {name: neutral(hint) for name, hint in fields(kind).items() if name in kind.__required_keys__}
    return values | {name: filled(fields(kind).get(name), value) for name, value in given.items()}


def filled(hint: Any, value: Any) -> Any:
    """`value`, and the objects in it, completed as `hint` has them."""
    kind = bare(hint)
    if is_typeddict(kind) and isinstance(value, dict):
        return complete(kind, value)
    if get_origin(kind) is list and isinstance(value, list):
        return [filled(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is dict and isinstance(value, dict):
        return {name: filled(get_args(kind)[1], item) for name, item in value.items()}
    return value


def neutral(hint: Any) -> Any:
    """The neutral value of a type: null where it may be, else nothing, zero or empty."""
    if get_origin(unwrapped(hint)) in (Union, UnionType) and NoneType in get_args(unwrapped(hint)):
        return None
    kind = bare(hint)
    if is_typeddict(kind):
        return complete(kind, {})
    return {list: [], dict: {}, str: "", int: 0, float: 0.0, bool: False}.get(get_origin(kind) or kind)


def bare(hint: Any) -> Any:
    """The type itself, without its meaning, and without null."""
    kind = unwrapped(hint)
    if get_origin(kind) in (Union, UnionType):
        kind = unwrapped(next(one for one in get_args(kind) if one is not NoneType))
    return kind


def unwrapped(hint: Any) -> Any:
    """The type without its meaning."""
    while get_origin(hint) in (Annotated, NotRequired):
        hint = get_args(hint)[0]
    return hint
