"""Exported conversations: private files that never replace another, whole or not there at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from localgemma_cli.errors import SavingError, UsageError


def write_new(path: Path, text: str) -> None:
    """UsageError where the file is there already, SavingError where it cannot be written."""
    try:
        if os.path.lexists(path):
            raise FileExistsError
        descriptor, draft = tempfile.mkstemp(prefix=".localgemma-", dir=path.parent)  # readable by its owner
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            _put(draft, path)
        finally:
            with suppress(OSError):
                os.unlink(draft)
    except FileExistsError:
        raise UsageError(f"{path} is there already.", "Give another name, or remove it first.") from None
    except OSError as error:
        raise SavingError(f"{path} cannot be written: {error.strerror}.", "Give another place.") from None
    except ValueError:  # a NUL in it
        raise UsageError(f"{str(path)!r} cannot be a file's name.", "Give another name.") from None


def _put(draft: str, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise
    except OSError:  # a file system without links, as on many USB sticks
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)
