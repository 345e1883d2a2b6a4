"""The wheel that users install: built, installed into an environment of its own, and asked."""

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=600)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_data_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "localgemma_cli/presets/exact.toml",
        "localgemma_cli/presets/memory_extreme.toml",
        "localgemma_cli/demo/model/model.safetensors",
        "localgemma_cli/demo/model/tokenizer.json",
        "localgemma_cli/schemas/answer.schema.json",
        "localgemma_cli/py.typed",
    ):
        assert expected in names
    assert not [name for name in names if name.startswith("tests")]
    assert wheel.stat().st_size < 8_000_000


def test_the_installed_wheel_finds_its_presets_and_its_model(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=600)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, timeout=600)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    # dependencies are those of this environment; localgemma comes from the wheel, whose folder stands first
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = str(tmp_path / "venv" / "bin" / "localgemma")
    run = subprocess.run(
        [command, "plan", "-m", "demo", "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert json.loads(run.stdout)["model"]["name"] == "demo"
    where = subprocess.run(
        [str(python), "-c", "import localgemma_cli; print(localgemma_cli.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert str(tmp_path) in where.stdout
    answer = subprocess.run(
        [command, "-m", "demo", "--temperature", "0", "What can you do?"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=600,
    )
    assert "localgemma" in answer.stdout
