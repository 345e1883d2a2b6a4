"""Typer's messages about the command line, in the program's own words."""

import re
from typing import Any

from typer.exceptions import TyperException

from localgemma_cli.documents import format_value
from localgemma_cli.errors import UsageError
from localgemma_cli.sanitize import one_line

_KINDS = (  # a word of Typer's message, and the requirement
    (r"integer|\bint\b", "must be a whole number"),
    (r"number|float", "must be a number"),
    (r"bool", "must be true or false"),
)
_SENTENCES = (
    (r"Option '(.+)' requires .*", r"\1 needs a value."),
    (r"Option '(.+)' does not \w+ a value\.", r"\1 does not accept a value."),
    (r"Got unexpected extra argument(?:s|\(s\))? \((.+)\)", r"Unexpected argument: \1."),
    (r"No such command '(.+?)'.*", r"Unknown command: '\1'."),
    (r"Missing command\.?", "A command is missing."),
)


def usage_error(error: TyperException) -> UsageError:
    """What is wrong, and how to see the help of the command that it concerns."""
    path = getattr(getattr(error, "ctx", None), "command_path", "localgemma").strip()
    near = _nearest(error)
    help = f"See {path} --help."
    return UsageError(one_line(_message(error)), f"Did you mean {near}? {help}" if near else help)


def _nearest(error: Any) -> str | None:
    possibilities = getattr(error, "possibilities", None)
    if possibilities:
        return str(possibilities[0])
    found = re.search(r"Did you mean '([^']+)'", error.message)
    return found[1] if found else None


def _message(error: Any) -> str:
    if hasattr(error, "possibilities"):
        return f"Unknown option: {error.option_name}."
    parameter = getattr(error, "param", None)
    if parameter is None:
        return _sentence(error.format_message())
    name = _name(parameter)
    return f"{name} {_problem(error)}" if error.message else f"{name} is missing."


def _sentence(message: str) -> str:
    for pattern, words in _SENTENCES:
        if found := re.fullmatch(pattern, message, re.DOTALL):
            return found.expand(words)
    return message


def _name(parameter: Any) -> str:
    """`--top-p`, or an argument's name as help shows it."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper()).rstrip(".")
    return str(parameter.opts[0])


def _problem(error: Any) -> str:
    """The rest of a sentence that begins with the option: `must be a number (got 'warm').`"""
    message = error.message
    found = re.search(r"(?s)('.*'|\S+) is not one of (.+?)\.?$", message)
    if found:
        return f"must be one of {found[2].replace(chr(39), '')} (got {found[1]})."
    for pattern, requirement in _KINDS:
        if re.search(pattern, message):
            return f"{requirement}{_got(error)}."
    return f"is not valid: {message}"


def _got(error: Any) -> str:
    """The value, from the validation error behind Typer's or from its message."""
    reasons: Any = getattr(error.__cause__, "errors", list)()
    if reasons:
        return f" (got {format_value(reasons[0].get('input'))})"
    found = re.match(r"(?s)('.*') is not a valid", error.message)
    return f" (got {found[1]})" if found else ""
