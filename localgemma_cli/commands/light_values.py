"""Convert the plain values of options without pydantic, whose import takes a third of a short start.

Typer (since 0.29) converts every value with pydantic. A value that is plainly of its option's type is
converted here instead, to the same result; all others, and all errors, remain Typer's.
"""

import re
from collections.abc import Callable
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

_PARAM = "_runtime_param"  # what a parameter of Typer's converts with, made when it is first needed
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"-?\d{1,15}(\.\d{1,15})?", re.ASCII)


def convert_lightly(params: list[Any]) -> list[Any]:
    """The parameters of a command, which convert plain values here; unchanged with a Typer made otherwise."""
    for param in params:
        if getattr(param, _PARAM, "") is None and hasattr(param, "get_runtime_param"):
            setattr(param, _PARAM, _LightParam(param))
    return params


class _LightParam:
    """Replaces Typer's own converter, which is made for the first value that is not plain."""

    def __init__(self, param: Any) -> None:
        self._param = param
        self._convert = converter(param.type_descriptor.annotation)

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """As Typer's; `param` and `ctx` name the option in errors."""
        is_several = param.multiple or param.nargs == -1
        if value is None:
            return () if is_several else None
        try:
            if self._convert is not None:
                return self._convert(value)
        except ValueError:
            pass
        setattr(self._param, _PARAM, None)
        try:
            return self._param.get_runtime_param().coerce(value, param=param, ctx=ctx)
        finally:
            setattr(self._param, _PARAM, self)


def converter(annotation: Any) -> Callable[[Any], Any] | None:
    """Converts plain values to this type, and raises ValueError for others; None for other types."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    named = [each for each in kinds if each is not type(None)]
    if len(named) != 1:
        return None
    (kind,) = named
    if get_origin(kind) is list and get_args(kind) == (str,):
        return lambda value: [_text(each) for each in _sequence(value)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return lambda value: value if isinstance(value, kind) else kind(_text(value))
    simple: dict[Any, Callable[[Any], Any]] = {str: _text, int: _whole, float: _decimal, bool: _truth}
    return simple.get(kind)


def _sequence(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else _refuse()


def _text(value: Any) -> str:
    return value if type(value) is str else _refuse()


def _truth(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse()


def _whole(value: Any) -> int:
    if type(value) is int:
        return value
    return int(value) if _WHOLE.fullmatch(_text(value)) else _refuse()


def _decimal(value: Any) -> float:
    if type(value) in (int, float):
        return float(value)
    return float(value) if _DECIMAL.fullmatch(_text(value)) else _refuse()


def _refuse() -> Any:
    raise ValueError
