"""`config.toml`: a user's own defaults for the options of a chat."""

import tomllib
from collections.abc import Iterable
from pathlib import Path

from localgemma_cli.errors import UsageError


def read_config(path: Path, allowed: Iterable[str]) -> dict[str, object]:
    """Option values by parameter name; {} without a file, UsageError naming file, key and what is allowed."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{path} cannot be read: {error}", "Correct the file, or move it away.") from None
    names = sorted(allowed)
    for key, value in values.items():
        if key.replace("-", "_") not in names:
            raise UsageError(
                f"{path}: there is no option {key!r}.", f"Allowed: {', '.join(names).replace('_', '-')}."
            )
        if not isinstance(value, str | int | float):
            raise UsageError(f"{path}: {key} must be text, a number or true/false.", "Correct the value.")
    return {key.replace("-", "_"): value for key, value in values.items()}
