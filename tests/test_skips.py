"""Every skipped test says what it needs, and the summary of a run groups them."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.skips import count_reasons

TESTS = Path(__file__).parent


def skip_reasons(source: str) -> list[str]:
    """The reasons of `pytest.skip(...)` and `pytest.mark.skipif(..., reason=...)`; "" for a missing one."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    reasons = []
    for call in calls:
        name = ast.unparse(call.func)
        if name in ("pytest.skip", "pytest.mark.skipif", "pytest.mark.skip"):
            given = [each.value for each in call.keywords if each.arg == "reason"]
            given += call.args[:1] if name == "pytest.skip" else []
            reasons.append(ast.literal_eval(given[0]) if given else "")
    return reasons


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_skip_says_what_it_needs(path: Path) -> None:
    for reason in skip_reasons(path.read_text(encoding="utf-8")):
        assert reason.startswith("needs "), reason
        assert len(reason) < 70, reason


def test_reasons_are_counted() -> None:
    missing = "Skipped: could not import 'openai': No module named 'openai'"
    skips = [("a.py", 1, "Skipped: needs /proc"), ["b.py", 2, "Skipped: needs /proc"], ("c.py", 3, missing)]
    assert count_reasons(skips) == {"needs /proc": 2, "needs the package openai": 1}


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "xdist"])
def test_a_run_ends_with_a_summary_of_its_skips(workers: list[str], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('n', range(3))\n"
        "def test_it(n): pytest.skip('needs /proc')\n"
        "def test_openai(): pytest.importorskip('no_such_package')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
    )
    assert "4 tests skipped" in done.stdout
    assert "    3  needs /proc\n    1  needs the package no_such_package\n" in done.stdout
