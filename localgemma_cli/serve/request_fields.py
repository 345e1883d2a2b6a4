"""Read the fields of a request with their types; what is wrong is named as OpenAI's API names it."""

from collections.abc import Collection, Mapping
from itertools import islice
from typing import Any

from localgemma_cli.documents import format_value, intended_field, is_number
from localgemma_cli.serve.api_error import ApiError, invalid

_COMPARED = 100  # fields of a request: more would hold up the other clients


class Fields:
    """The fields of one JSON object; `null` is the same as a field that is missing."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    def name(self, field: str) -> str:
        return f"{self._path}{field}"

    def raw(self, field: str) -> Any:
        return self._values.get(field)

    def text(self, field: str) -> str | None:
        value: str | None = self._of(field, str, "a string")
        return value

    def switch(self, field: str) -> bool:
        value: bool | None = self._of(field, bool, "true or false")
        return bool(value)

    def items(self, field: str) -> list[Any] | None:
        value: list[Any] | None = self._of(field, list, "a list")
        return value

    def inner(self, field: str) -> "Fields | None":
        value = self._of(field, dict, "an object")
        return None if value is None else Fields(value, f"{self.name(field)}.")

    def whole(self, field: str) -> int | None:
        value = self.raw(field)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self.wrong(field, "a whole number")

    def number(self, field: str) -> float | None:
        value = self.raw(field)
        if value is None or is_number(value):
            return value
        raise self.wrong(field, "a number")

    def wrong(self, field: str, what: str) -> ApiError:
        """The error for a field that must be `what`."""
        name = self.name(field)
        return invalid(name, f"{name} must be {what} (got {format_value(self.raw(field))}).", "invalid_type")

    def refuse(self, unsupported: Mapping[str, tuple[object, ...]]) -> None:
        """Raise ApiError for a field that asks for what is not supported.

        `unsupported`: for each field the values that ask for nothing; those that count as missing always do.
        """
        for field, harmless in unsupported.items():
            value = self.raw(field)
            if value not in (None, [], {}, False, "", *harmless):
                name = self.name(field)
                raise invalid(name, f"{name} is not supported.", "unsupported_parameter")

    def refuse_misspelled(self, known: Collection[str]) -> None:
        """Raise ApiError for an unknown field that resembles a known one; others are ignored."""
        for field in islice(self._values, _COMPARED):
            if intended := intended_field(field, known):
                raise invalid(
                    field,
                    f"Unknown field {format_value(field)}. Did you mean {intended}?",
                    "unknown_parameter",
                )

    def _of(self, field: str, kind: type, what: str) -> Any:
        value = self.raw(field)
        if value is None or isinstance(value, kind):
            return value
        raise self.wrong(field, what)
