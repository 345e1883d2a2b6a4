"""Names that no file and no repository can have are models that are not found, like any other."""

import pytest

from localgemma_cli.errors import NotFoundError
from localgemma_cli.models.resolve import resolve, resolve_adapted


@pytest.mark.parametrize("name", ["x" * 5000, f"{'x' * 300}/y", f"x/{'y' * 300}", "a\0b"])
def test_a_name_too_long_for_a_file_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError, match="Model not found"):
        resolve(name, revision=None, offline=True)
    with pytest.raises(NotFoundError, match="Adapter not found"):
        resolve_adapted("demo", name, revision=None, offline=True)
