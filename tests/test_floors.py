"""The plan of the house: who may import whom, read from the sources."""

import ast
from pathlib import Path

import pytest

import localgemma_cli

PACKAGE = Path(localgemma_cli.__file__).parent
FLOORS = {
    "__main__": 7,
    "cli": 6,
    "commands": 6,
    "bench": 5,
    "chat": 5,
    "backends": 4,
    "backends.pytorch": 4.6,
    "backends.pytorch.generation": 4.5,
    "backends.pytorch.loading": 4.4,
    "backends.pytorch.lora": 4.3,
    "backends.pytorch.layers": 4.2,
    "backends.pytorch.kernels": 4.1,
    "backends.pytorch.weights": 4.0,
    "planning": 3,
    "prompts": 3,
    "render": 3,
    "sessions": 3,
    "models": 2,
    "config": 1,
    "conversation": 1,
    "documents": 1,
    "environment": 1,
    "errors": 1,
    "events": 1,
    "optional_dependencies": 1,
    "options": 1,
    "redaction": 1,
    "sampling": 1,
    "sanitize": 1,
    "text": 1,
    "types": 1,
}
PENDING = {  # moved, and not yet of their floor
    "layers/nf4.py",
    "prompts/tokenizer.py",
    "prompts/prompt_forms.py",
    "prompts/prompter.py",
}
FILES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if "demo" not in path.parts and path.stem != "__init__" and "/".join(path.parts[-2:]) not in PENDING
)


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def floor(parts: tuple[str, ...]) -> float:
    """The deepest room that FLOORS names."""
    parts = tuple(part.removesuffix(".py") for part in parts)
    return next(FLOORS[name] for n in (3, 2, 1) if (name := ".".join(parts[:n])) in FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    own = floor(path.relative_to(PACKAGE).parts)
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "localgemma_cli" and rest[0] != "__version__":
            assert floor(tuple(rest)) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_pytorch_backend_and_the_benchmark_import_torch_and_transformers(path: Path) -> None:
    tops = {name.split(".")[0] for name in imported(path)}
    parts = path.relative_to(PACKAGE).parts
    if "pytorch" not in parts and parts[0] != "bench":
        assert not tops & {"torch", "transformers", "accelerate", "bitsandbytes"}
