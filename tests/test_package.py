"""The wheel that users install: built, installed into an environment of its own, and asked."""

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


BUILT_FROM = ("localgemma_cli", "presets", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because what an earlier build left beside the sources would go into it."""
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("sources")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copyfile(ROOT / name, copy / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(copy),
    ]
    subprocess.run(command, check=True, timeout=600)
    return next(folder.glob("*.whl"))


def test_every_module_but_training_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"]) - {"localgemma_cli.presets"}
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "localgemma_cli").rglob("*.py")}
    assert listed == {".".join(each.parts) for each in folders} - {"localgemma_cli.demo"}


def test_the_wheel_holds_the_data_and_neither_tests_nor_training(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "localgemma_cli/presets/exact.toml",
        "localgemma_cli/presets/speed.toml",
        "localgemma_cli/presets/memory.toml",
        "localgemma_cli/presets/memory_extreme.toml",
        "localgemma_cli/schemas/answer.schema.json",
        "localgemma_cli/schemas/error.schema.json",
        "localgemma_cli/schemas/plan.schema.json",
        "localgemma_cli/schemas/score.schema.json",
        "localgemma_cli/py.typed",
    ):
        assert expected in names
    demo = {name for name in names if name.startswith("localgemma_cli/demo/")}
    assert demo == {
        f"localgemma_cli/demo/model/{name}"
        for name in (
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    }
    assert {name.split("/")[0].split("-")[0] for name in names} == {"localgemma_cli"}
    assert wheel.stat().st_size < 8_000_000


def test_the_installed_program_imports_no_training_code() -> None:
    package = ROOT / "localgemma_cli"
    for path in package.rglob("*.py"):
        if "demo" in path.relative_to(package).parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = (
                getattr(node, "module", None) or getattr(node, "name", None) or getattr(node, "value", None)
            )
            assert not str(named).startswith("localgemma_cli.demo"), f"{path}:{node.lineno}"


def test_the_installed_wheel_finds_its_presets_and_its_model(wheel: Path, tmp_path: Path) -> None:
    make = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(make, check=True, timeout=600)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=600)
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
