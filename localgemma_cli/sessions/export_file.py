"""Write a text to a new private file, completely or not at all."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from localgemma_cli.errors import SavingError, UsageError


def write_new_file(path: Path, text: str, *, replace: bool = False) -> None:
    """Write a new file; UsageError if it exists unless `replace`, SavingError if it cannot be written."""
    try:
        if not replace and os.path.lexists(path):
            raise FileExistsError
        descriptor, draft = tempfile.mkstemp(prefix=".localgemma-", dir=path.parent)  # readable by its owner
        try:
            with open(descriptor, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            (os.replace if replace else _rename_without_replacing)(draft, path)
        finally:
            with suppress(OSError):
                os.unlink(draft)
    except FileExistsError:
        raise UsageError(f"{path} already exists.", "Choose another name, or remove it first.") from None
    except OSError as error:
        raise SavingError(f"Cannot write {path}: {error.strerror}.", "Choose another folder.") from None
    except ValueError:  # a NUL
        raise UsageError(f"{str(path)!r} is not a valid file name.", "Choose another name.") from None


def _rename_without_replacing(draft: str, path: Path) -> None:
    try:
        os.link(draft, path)  # unlike a rename, a link never replaces a file
    except FileExistsError:
        raise
    except OSError:  # a file system without links, as on many USB sticks
        if os.path.lexists(path):
            raise FileExistsError from None
        os.rename(draft, path)
