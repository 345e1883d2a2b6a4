"""Packages that only some models need."""

from collections.abc import Iterator
from contextlib import contextmanager

from localgemma_cli.errors import NotFoundError


@contextmanager
def needed(package: str, extra: str, what: str) -> Iterator[None]:
    """Around the import of `package`: a NotFoundError that names the extra where it is not installed."""
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise NotFoundError(
            f"{what} need the package {package}, which is not installed.",
            f"Install it: pip install 'localgemma-cli[{extra}]'",
        ) from error
