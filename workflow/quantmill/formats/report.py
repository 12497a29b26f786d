"""How a stage hands over a JSON report: its type, where it lies, and the check of whoever reads it.

The types are `TypedDict`s, so that mypy follows a field from the stage that
writes it to the card. A field's meaning stands in its annotation:
`Annotated[float, "nats"]`. `quantmill.formats` makes docs/files.md of them.
Their modules do without `from __future__ import annotations`: Python would not
see then which fields are NotRequired.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from quantmill.errors import QuantmillError
from quantmill.files import read_json, write_json

T = TypeVar("T")
_CURE: Final = "delete it to have it made again"


@dataclass(frozen=True)
class Report(Generic[T]):
    """A JSON file between stages: where it lies below `results/<model>/`, who writes it, what it is.

    `types` are the forms that it may have.
    """

    path: str
    stage: str
    types: tuple[Any, ...]
    about: str

    def read(self, path: Path) -> T:
        """The report in a file. QuantmillError where it is missing, is no JSON, or is of another form."""
        value = read_json(path)
        if text := self.fault(value):
            raise QuantmillError(text, path, _CURE)
        return value

    def write(self, path: Path, value: T) -> None:
        """Write the report. A value of another form is a bug of the stage: ValueError."""
        if text := self.fault(value):
            raise ValueError(f"{path}: {text}")
        write_json(path, value)

    def fault(self, value: Any) -> str:
        """What is wrong with a value as this report, by the first of its types; empty where nothing is."""
        faults = [fault(value, kind) for kind in self.types]
        return faults[0] if all(faults) else ""


def fault(value: Any, hint: Any, where: str = "") -> str:
    """What is wrong with `value` as a `hint`, in words with the field's path; empty where nothing is."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired):
        return fault(value, args[0], where)
    if origin in (Union, UnionType):
        faults = [fault(value, kind, where) for kind in args]
        return min(faults, key=len) if "" in faults else next(text for text in faults if text)
    if hint is Any:
        return ""
    if is_typeddict(hint):
        return _fault_of_fields(value, hint, where)
    if origin is Literal:
        return "" if value in args else _is(value, where, f"one of {', '.join(map(str, args))}")
    if origin is list:
        return _first_fault(value, list, where, args[0])
    if origin is dict:
        return _first_fault(value, dict, where, args[1])
    if isinstance(value, float) and not isfinite(value):  # which JSON has no word for
        return _is(value, where, "a finite number")
    plain = hint in (float, int) and isinstance(value, int | float) and not isinstance(value, bool)
    if (plain and (hint is float or isinstance(value, int))) or (hint is NoneType and value is None):
        return ""
    if hint in (str, bool) and isinstance(value, hint):
        return ""
    return _is(value, where, "null" if hint is NoneType else f"of type {getattr(hint, '__name__', hint)}")


@cache
def fields(hint: Any) -> dict[str, Any]:
    """The fields of a TypedDict with their annotations."""
    return get_type_hints(hint, include_extras=True)


@cache
def _plain_types(hint: Any) -> dict[str, frozenset[type]]:
    """Of the fields of a TypedDict: the types of Python whose values need no further look."""
    return {name: _plain(field) for name, field in fields(hint).items()}


def _plain(hint: Any) -> frozenset[type]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired):
        return _plain(args[0])
    if origin in (Union, UnionType):
        return frozenset().union(*map(_plain, args))
    if hint is float:
        return frozenset((float, int))
    return frozenset((hint,)) if hint in (int, str, bool, NoneType) else frozenset()


def _fault_of_fields(value: Any, hint: Any, where: str) -> str:
    if not isinstance(value, dict):
        return _is(value, where, "a mapping")
    known = fields(hint)
    if missing := hint.__required_keys__ - value.keys():
        return f"no field {_below(where, min(missing))}"
    if unknown := value.keys() - known.keys():
        return f"unknown field {_below(where, min(unknown))}"
    plain = _plain_types(hint)
    for name, item in value.items():
        if type(item) in plain[name] and (type(item) is not float or isfinite(item)):
            continue
        if text := fault(item, known[name], _below(where, name)):
            return text
    return ""


def _first_fault(value: Any, kind: type, where: str, hint: Any) -> str:
    """The first fault of a list's or a mapping's values."""
    if not isinstance(value, kind):
        return _is(value, where, f"a {kind.__name__}")
    items: Any = enumerate(value) if kind is list else value.items()  # type: ignore[attr-defined, arg-type]
    for key, item in items:
        if text := fault(item, hint, f"{where}[{key}]" if kind is list else _below(where, str(key))):
            return text
    return ""


def _below(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _is(value: Any, where: str, expected: str) -> str:
    text = repr(value)
    return f"{where or 'it'} is {text if len(text) <= 40 else text[:37] + '...'}, not {expected}"
