"""The C extension: one OpenMP runtime with PyTorch, and everything works without it."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.models import DEMO

from localgemma_cli.backends.pytorch.kernels.library import first_correct, variants
from localgemma_cli.backends.pytorch.layers.cpu_linear import is_widened
from localgemma_cli.planning.host import EXTENSION_FLAGS, cpu_flags, extension_file

WITHOUT = """
import sys
from localgemma_cli.planning import hardware, host
host.extension_file = hardware.extension_file = lambda: None
from localgemma_cli.__main__ import main
main()
"""


def run_without_extension(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-c", WITHOUT, *arguments)
    environment = {"LOCALGEMMA_HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, text=True, capture_output=True, timeout=600, env=environment, check=False)


@pytest.mark.parametrize("preset", ["exact", "memory"])
def test_without_the_extension_the_demo_answers_and_the_plan_names_what_is_slower(
    preset: str, tmp_path: Path
) -> None:
    words = ("-m", str(DEMO), "--preset", preset)
    answer = run_without_extension(*words, "-q", "--no-save", "How do I get JSON?", home=tmp_path)
    assert (answer.returncode, "json" in answer.stdout.lower()) == (0, True), answer.stderr
    plan = run_without_extension("plan", *words, home=tmp_path)
    slower = is_widened() and (cpu_flags() or frozenset()) >= EXTENSION_FLAGS
    assert ("C extension was not built" in " ".join(plan.stdout.split())) == slower


@pytest.mark.skipif(not variants(), reason="needs the C extension for this processor")
def test_one_openmp_runtime_is_shared_with_pytorch() -> None:
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert any(str(extension_file()) in line for line in maps)
    assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1


def test_the_first_product_that_passes_its_check_is_used() -> None:
    assert first_correct([1, 2, 3], lambda product: product > 1) == 2
    assert first_correct([1], lambda product: product > 1) is None
