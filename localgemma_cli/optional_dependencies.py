"""Packages that only some models need."""

from collections.abc import Iterator
from contextlib import contextmanager

from localgemma_cli.errors import NotFoundError


@contextmanager
def require_package(package: str, extra: str, what: str) -> Iterator[None]:
    """Wrap the import of `package`. Raises NotFoundError with the extra to install if it is missing."""
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise NotFoundError(
            f"{what} need the package {package}, which is not installed.",
            f"Install it: pip install 'localgemma-cli[{extra}]'",
        ) from error
