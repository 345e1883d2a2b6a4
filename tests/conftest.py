"""Fixtures that run the real program."""

import os
from pathlib import Path

import pytest
from support.program import Program

pytest_plugins = ["support.machines"]

# Before torch reads it, here and in the programs that tests start: two test processes share the processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """The installed `localgemma`, with folders of its own and no network."""
    return Program(tmp_path)
