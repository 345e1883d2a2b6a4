"""Exported conversations: private files that never replace another."""

from pathlib import Path

from localgemma_cli.errors import SavingError, UsageError


def write_new(path: Path, text: str) -> None:
    """UsageError where the file is there already, SavingError where it cannot be written."""
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            path.chmod(0o600)
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "Give another name, or remove it first.") from None
    except OSError as error:
        raise SavingError(f"{path} cannot be written: {error.strerror}.", "Give another place.") from None
