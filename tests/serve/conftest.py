"""One server with the demo model for all tests that only ask it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.program import Program
from support.serving import Serving, gated, serving


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(Program(tmp_path_factory.mktemp("serve")), "-v") as server:
        yield server


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Serving]:
    with gated(tmp_path) as server:
        yield server
