"""The key that clients of `localgemma serve` must send."""

import os
import re

from localgemma_cli.environment import expand_home
from localgemma_cli.errors import UsageError
from localgemma_cli.text import read_text

VARIABLE = "LOCALGEMMA_SERVE_KEY"
_USABLE = re.compile(r"[!-~]+")  # what a header can carry
_MAKE = "Make one: openssl rand -hex 32"


def read_key(file: str | None) -> str | None:
    """The key in the file, else in the variable, else None. UsageError for one that cannot be used."""
    if file is not None:
        key, place = read_text(expand_home(file), pipes=True), f"The file {file}"
    else:
        key, place = os.environ.get(VARIABLE, ""), VARIABLE
        if not key:
            return None
    key = key.strip()
    if not key:
        raise UsageError(f"{place} has no API key.", _MAKE)
    if not _USABLE.fullmatch(key):
        raise UsageError(f"{place} has a key with spaces or with characters that are not ASCII.", _MAKE)
    return key
