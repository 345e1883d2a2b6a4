"""Typed access to the values of a model's JSON files; errors name the file and the key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localgemma_cli.documents import format_value, is_number
from localgemma_cli.errors import NotFoundError


@dataclass(frozen=True)
class JsonFields:
    """One JSON object of the file that `where` names; every method raises NotFoundError."""

    values: Mapping[str, object]
    where: str

    def whole(self, key: str, least: int, most: int) -> int:
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
            return value
        raise self.fault(key, f"a whole number from {least} to {most}")

    def require_number(self, key: str, least: float, most: float) -> None:
        """Accepts a missing key and null."""
        value = self.values.get(key)
        if value is None or (is_number(value) and least <= value <= most):
            return
        raise self.fault(key, f"a number from {least:g} to {most:g}")

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        raise self.fault(key, "true or false")

    def require_text(self, key: str) -> None:
        """Accepts a missing key and null."""
        if not isinstance(self.values.get(key), str | None):
            raise self.fault(key, "text")

    def texts(self, key: str) -> list[str] | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return value
        raise self.fault(key, "a list of texts")

    def part(self, key: str) -> "JsonFields | None":
        """The object under a key; None if it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, Mapping):
            return JsonFields(value, f"{self.where}, {key}")
        raise self.fault(key, "an object")

    def require_ids(self, keys: Sequence[str], vocabulary: int) -> None:
        """Accepts token ids, alone or in a list, missing keys and null; -1 means no token."""
        for key in keys:
            value = self.values.get(key)
            for each in value if isinstance(value, list) else [value]:
                is_id = isinstance(each, int) and not isinstance(each, bool) and -1 <= each < vocabulary
                if not is_id and (each is not None or isinstance(value, list)):
                    raise self.fault(key, f"a token's id below {vocabulary}, or a list of them")

    def fault(self, key: str, allowed: str) -> NotFoundError:
        return NotFoundError(
            f"{self.where}: {key} must be {allowed} (got {format_value(self.values.get(key))}).",
            "Download the model again, or correct the file.",
        )
