"""Read the user's TOML files, and values for the options in them."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from localgemma_cli.documents import Unreadable, format_value, is_number, require_shallow
from localgemma_cli.errors import UsageError
from localgemma_cli.text import TEXT_LIMIT, decode_text, read_bytes

_CORRECT = "Correct the file, or move it away."


def read_toml(path: Path) -> dict[str, object]:
    """Read a TOML file; {} without a file, UsageError for an unreadable one."""
    try:
        text = decode_text(read_bytes(path, TEXT_LIMIT), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", _CORRECT) from None
    except UsageError as error:
        raise UsageError(f"{path} cannot be read: {error.message}", error.hint) from None
    return parse_toml(text, str(path))


def parse_toml(text: str, name: str) -> dict[str, object]:
    """Parse TOML; UsageError with `name` and line for invalid TOML."""
    try:
        values = tomllib.loads(text)
        require_shallow(values)
    except (RecursionError, Unreadable):
        raise UsageError(f"{name} cannot be read: it is nested too deeply.", _CORRECT) from None
    except tomllib.TOMLDecodeError as error:
        end = f"line {max(1, len(text.splitlines()))}"
        what = str(error).replace("end of document", f"the end, {end}")
        raise UsageError(
            f"{name} cannot be read: it is not valid TOML: {what}.", "Correct that line."
        ) from None
    except ValueError:  # Python's own limit of digits
        raise UsageError(f"{name} cannot be read: a number has too many digits.", _CORRECT) from None
    return values


def read_config(path: Path, allowed: Iterable[str]) -> dict[str, object]:
    """Values by option (`top-p`); {} without a file, UsageError naming file, key and what is allowed."""
    return check_options(read_toml(path), path, allowed)


def check_options(table: Mapping[str, object], path: Path, allowed: Iterable[str]) -> dict[str, object]:
    """The values of a file by option (`top-p`); UsageError naming file, key and what is allowed."""
    values = {key.replace("_", "-"): value for key, value in table.items()}
    known = sorted(allowed)
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{path}: unknown option {format_value(key)}.", f"Allowed: {', '.join(known)}.")
        if not isinstance(value, str | bool) and not (is_number(value) and abs(value) < 2**63):
            raise UsageError(
                f"{path}: {key} must be text, a number or true/false.", "Write it as in: top-p = 0.9"
            )
    return values
