"""Saved prompts, for `--prompt NAME`: a text with fields, and options; each is a TOML file."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localgemma_cli.config import check_options, read_toml
from localgemma_cli.documents import format_value
from localgemma_cli.environment import config_folder
from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.prompt_template import PromptTemplate, parse_template

INPUT = "input"  # the field for the words and standard input
_NAME = re.compile(r"\w[\w.-]{0,63}")
_OWN_KEYS = ("prompt", "fields")
_SHOWN = 12  # names in a hint
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class SavedPrompt:
    """One file: `fields` holds default values, `options` values as in config.toml.

    Without a text it is a system text, a model or other options to ask any question with.
    """

    name: str
    path: Path
    text: str | None
    fields: Mapping[str, str]
    options: Mapping[str, object]


@dataclass(frozen=True)
class FilledPrompt:
    """A text with a value for every field but the input."""

    name: str
    template: PromptTemplate
    values: Mapping[str, str]

    @property
    def takes_input(self) -> bool:
        return INPUT in self.template.fields

    def with_input(self, text: str) -> str:
        """The prompt; a text without the field `{input}` is followed by a blank line and the input.

        The input loses newlines at its end, as a shell's `$(command)` does.
        """
        text = text.rstrip("\n")
        filled = self.template.fill({**self.values, INPUT: text})
        return filled if self.takes_input or not text.strip() else f"{filled}\n\n{text}"


def prompts_folder() -> Path:
    return config_folder() / "prompts"


def prompt_path(name: str) -> Path:
    """The file of a prompt, which may not exist; UsageError for a name that is not allowed."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"Not a valid name for a prompt: {format_value(name)}.",
            "Use up to 64 letters, digits, dots, dashes and underscores; begin with a letter or digit.",
        )
    return prompts_folder() / f"{name}.toml"


def prompt_names() -> list[str]:
    """The names of all saved prompts, sorted."""
    names = sorted(path.stem for path in prompts_folder().glob("*.toml"))
    return [name for name in names if _NAME.fullmatch(name)]


def existing_path(name: str) -> Path:
    """The file of a saved prompt; NotFoundError if there is none."""
    path = prompt_path(name)
    if not path.exists():
        names = prompt_names()
        known = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
        raise NotFoundError(
            f"Saved prompt not found: {format_value(name)}.",
            f"Saved: {known}." if names else 'Save one with: localgemma prompts save NAME "TEXT"',
        )
    return path


def read_prompt(name: str, keys: Iterable[str]) -> SavedPrompt:
    """Read a saved prompt; `keys` are those of config.toml. UsageError names what is wrong in the file."""
    path = existing_path(name)
    table = read_toml(path)
    text, fields = table.pop("prompt", None), table.pop("fields", {})
    if text is not None and not isinstance(text, str):
        raise UsageError(f"{path}: prompt must be text.", "Put it in quotation marks.")
    if not isinstance(fields, dict) or not all(isinstance(each, str) for each in fields.values()):
        raise UsageError(f"{path}: fields must be a table of texts.", 'Write them as in: lang = "German"')
    options = check_options(table, path, [each for each in keys if each not in ("prompt", "field")])
    prompt = SavedPrompt(name, path, text, fields, options)
    check_fields(parse_template(text or "", f"{path}: prompt"), fields, str(path))
    return prompt


def fill_fields(prompt: SavedPrompt | None, given: Sequence[str]) -> FilledPrompt | None:
    """The text of a prompt with the fields of the command line, `lang=German`; None without a text.

    UsageError for a field that is missing, unknown or without a value; it lists the fields.
    """
    if prompt is None:
        if given:
            raise UsageError("--field needs --prompt.", "Name a saved prompt, or remove --field.")
        return None
    template = parse_template(prompt.text or "", f"{prompt.path}: prompt")
    values = {**prompt.fields, **parse_fields(given)}
    check_fields(template, values, f"The prompt {prompt.name}")
    missing = [each for each in _own_fields(template) if each not in values]
    if missing:
        needed = " ".join(f"--field {each}=VALUE" for each in missing)
        raise UsageError(
            f"The prompt {prompt.name} needs a value for: {', '.join(missing)}.",
            f"Add {needed}. Fields: {', '.join(_own_fields(template))}.",
        )
    return None if prompt.text is None else FilledPrompt(prompt.name, template, values)


def parse_fields(given: Sequence[str]) -> dict[str, str]:
    """The values of `NAME=VALUE`, the last of each name; UsageError for anything else."""
    values = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(
                f"--field must be NAME=VALUE (got {format_value(each)}).", "Example: --field lang=German"
            )
        values[name] = value
    return values


def check_fields(template: PromptTemplate, values: Iterable[str], where: str) -> None:
    """UsageError for values of fields that the text does not have, or for the input."""
    own = _own_fields(template)
    for name in values:
        if name == INPUT:
            raise UsageError(
                "The field input cannot be set: it is the words of the command line and standard input.",
                "Remove it.",
            )
        if name not in own:
            known = f"Fields: {', '.join(own)}." if own else "It has no fields."
            raise UsageError(f"{where} has no field {format_value(name)}.", known)


def _own_fields(template: PromptTemplate) -> list[str]:
    return [each for each in template.fields if each != INPUT]


def format_prompt(text: str | None, fields: Mapping[str, str], options: Mapping[str, object]) -> str:
    """The TOML of a prompt's file."""
    lines = [] if text is None else [f"prompt = {_format_text(text)}"]
    lines += [f"{key} = {_format_value(value)}" for key, value in options.items()]
    if fields:
        lines += ["", "[fields]", *(f"{_format_key(key)} = {_format_text(fields[key])}" for key in fields)]
    return "\n".join(lines) + "\n"


def _format_value(value: object) -> str:
    return _format_text(value) if isinstance(value, str) else str(value).lower()


def _format_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _format_text(key)


def _format_text(text: str) -> str:
    """A text of several lines, or with quotation marks, stays readable."""
    if re.search(r'["\\]', text) and not re.search(r"['\n]", text) and text.isprintable():
        return f"'{text}'"
    if "\n" not in text:
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    inner = text.replace("\\", "\\\\").replace('"""', '""\\"')
    inner = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", inner)
    if inner.endswith('"'):
        inner = inner[:-1] + '\\"'
    return f'"""\n{inner}"""'
