"""A prompt with named fields: `Translate into {language}: {text}`; `{{` and `}}` are braces."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from localgemma_cli.documents import format_value
from localgemma_cli.errors import UsageError

_BRACES = "Write {{ and }} for braces that are text."
_PIECE = re.compile(r"\{\{|\}\}|\{(?P<field>[^{}\n]+)\}|[{}]")


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass(frozen=True)
class PromptTemplate:
    """Texts and fields, in order; made by `parse_template`."""

    pieces: tuple[str | _Field, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, each once, in order."""
        return tuple(dict.fromkeys(each.name for each in self.pieces if isinstance(each, _Field)))

    def fill(self, values: Mapping[str, object]) -> str:
        """The prompt with the fields' values: a text as it is, another value as JSON.

        UsageError for a field that is missing or null.
        """
        return "".join(each if isinstance(each, str) else _text_of(values, each.name) for each in self.pieces)


def parse_template(text: str, where: str) -> PromptTemplate:
    """Parse a template; `where` names it in messages. UsageError for a brace that belongs to no field."""
    pieces: list[str | _Field] = []
    end = 0
    for found in _PIECE.finditer(text):
        pieces.append(text[end : found.start()])
        end = found.end()
        if found["field"] is not None:
            pieces.append(_Field(found["field"]))
        elif len(found[0]) == 2:
            pieces.append(found[0][0])
        else:
            near = format_value(text[max(0, found.start() - 10) : end + 10])
            raise UsageError(f"{where} has a brace without its partner or a name: {near}.", _BRACES)
    return PromptTemplate((*pieces, text[end:]))


def missing_field(name: str, known: Iterable[str]) -> UsageError:
    """The error for a field that the data do not have; `known`: the names that they have."""
    names = ", ".join(known)
    return UsageError(f"There is no field {format_value(name)}.", f"Fields: {names or 'none'}. {_BRACES}")


def _text_of(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    if value is None:
        raise missing_field(name, [key for key, each in values.items() if each is not None])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
