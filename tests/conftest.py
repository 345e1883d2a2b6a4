"""Fixtures that run the real program."""

from pathlib import Path

import pytest
from support.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed `localgemma`, with folders of its own and no network."""
    return Program(tmp_path)
