"""A home of its own and a copy of the demo, whose files the tests replace."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fuzzing import answer
from support.models import DEMO


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own with a copy of the demo in it, and no network."""
    folder = tmp_path_factory.mktemp("hostile")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALGEMMA_HOME", str(folder / "home"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        (folder / "home" / "config" / "presets").mkdir(parents=True)
        shutil.copytree(DEMO, folder / "m")
        yield folder


@pytest.fixture(autouse=True)
def warm(folder: Path) -> None:
    """Import torch and the like first: they are not counted as growth."""
    assert answer(folder).code == 0
