"""A method that is computed once for each of its arguments."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

OwnerT = TypeVar("OwnerT")
ResultT = TypeVar("ResultT")
P = ParamSpec("P")


def once(
    method: Callable[Concatenate[OwnerT, P], ResultT],
) -> Callable[Concatenate[OwnerT, P], ResultT]:
    """Keep the results of a method with its object; the arguments are names."""

    @wraps(method)
    def wrapped(owner: OwnerT, /, *names: P.args, **none: P.kwargs) -> ResultT:
        results: dict[Hashable, Any] = owner.__dict__.setdefault("_once", {})
        key = (method.__qualname__, *names)
        if key not in results:
            results[key] = method(owner, *names, **none)
        return results[key]

    return wrapped
