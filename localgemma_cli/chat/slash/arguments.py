"""Parsing the arguments of slash commands."""

import re
import shlex

from localgemma_cli.chat.slash import slash_commands as slash
from localgemma_cli.errors import UsageError


def parse_count(command: str, argument: str) -> int:
    """A number of turns, 1 by default."""
    if not argument:
        return 1
    if not re.fullmatch(r"0{0,9}[1-9][0-9]{0,5}", argument):
        raise argument_error(command)
    return int(argument)


def argument_error(command: str) -> UsageError:
    """The error for an argument that `command` does not accept."""
    described = slash.COMMANDS[command]
    only = "" if described.argument else " (no argument)"
    return UsageError(f"Usage: {slash.usage(command)}{only}", f"{command}: {described.what}.")


def split_paths(argument: str) -> list[str]:
    """Split paths as a shell does."""
    if "\0" in argument:
        raise UsageError("A path cannot contain a NUL character.", "Type the path again.")
    try:
        return shlex.split(argument)
    except ValueError as error:
        raise UsageError(f"Cannot parse the paths: {error}.", "Put names with spaces in quotes.") from None
