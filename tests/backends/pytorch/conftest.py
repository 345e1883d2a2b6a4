"""Folders of its own for everything that is loaded here."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Quantized weights are kept in the cache folder, which must not be that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALGEMMA_HOME", str(tmp_path_factory.mktemp("home")))
        yield
