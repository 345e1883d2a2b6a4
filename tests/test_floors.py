"""The plan of the house: who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

import localgemma_cli

PACKAGE = Path(localgemma_cli.__file__).parent
FLOORS = {
    "cli": 5,
    "commands": 5,
    "__main__": 6,
    "chat": 4,
    "backends": 3,
    "planning": 2,
    "render": 2,
    "sessions": 2,
    "conversation": 1,
    "events": 1,
    "options": 1,
    "sampling": 1,
    "config": 1,
    "environment": 1,
    "documents": 1,
    "errors": 1,
    "render.sanitize": 1,  # imports nothing, and the streams are built on it
    "text": 1,
    "redaction": 1,
}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "demo" not in path.parts and path.stem != "__init__")


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def floor(parts: tuple[str, ...]) -> int:
    parts = tuple(part.removesuffix(".py") for part in parts)
    return FLOORS.get(".".join(parts[:2]), FLOORS[parts[0]])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    own = floor(path.relative_to(PACKAGE).parts)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "localgemma_cli" and rest[0] != "__version__":
            assert floor(tuple(rest)) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_local_backend_imports_torch_and_transformers(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    if "local" not in path.parts:
        assert not tops & {"torch", "transformers", "accelerate", "bitsandbytes", "safetensors", "tokenizers"}
