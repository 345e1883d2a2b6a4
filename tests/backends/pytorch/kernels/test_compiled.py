"""Our own C: compiled once, kept for the user alone, and done without where it cannot be made or is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import needs_int4

from localgemma_cli.backends.pytorch.kernels import compiled
from localgemma_cli.backends.pytorch.kernels import int4 as int4_kernel
from localgemma_cli.backends.pytorch.layers.int4 import row_block
from localgemma_cli.planning.host import cpu_flags

pytestmark = [
    needs_int4,
    pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="no C compiler"),
    pytest.mark.skipif("fma" not in (cpu_flags() or ()), reason="no processor that there is a kernel for"),
]
PRODUCT = """
import torch
from localgemma_cli.backends.pytorch.layers.int4 import Int4Linear, row_block
from localgemma_cli.backends.pytorch.kernels.int4 import interleaved, kernel
levels = torch.arange(64 * 128).reshape(64, 128).mul(7).remainder(16).byte()
factors = torch.tensor([0.5, 0.0]).expand(2, 64, 2).to(torch.bfloat16)
layer = Int4Linear(interleaved(levels, row_block()), factors, 64, 64)
there = kernel(row_block()) is not None
right = []
for rows, allowed in ((1, 0.02), (130, 0.02 if there else 1e-3)):
    x = torch.linspace(-1, 2, rows * 128).view(rows, 128)
    expected = x @ ((levels - 8.0) * 0.5).T
    right.append(float((layer(x) - expected).abs().max() / expected.abs().max()) < allowed)
print(all(right), there)
"""


def started(home: Path, **environment: str) -> subprocess.Popen[str]:
    root = str(Path(compiled.__file__).parents[3])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    told = os.environ | {"LOCALGEMMA_HOME": str(home), "PYTHONPATH": paths} | environment
    return subprocess.Popen([sys.executable, "-c", PRODUCT], env=told, text=True, stdout=subprocess.PIPE)


def said(process: subprocess.Popen[str]) -> str:
    """Whether products were right, and whether there is a kernel."""
    answer = process.communicate(timeout=600)[0].strip()
    assert process.returncode == 0
    return answer


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_compiled_once_for_the_user_alone(tmp_path: Path) -> None:
    counting = script(tmp_path / "compiler", f'echo "$@" >> {tmp_path / "calls"}\nexec cc "$@"')
    for _ in range(2):
        assert said(started(tmp_path / "home", CC=counting)) == "True True"
    calls = (tmp_path / "calls").read_text().splitlines()
    assert sum("-shared" in call for call in calls) == 1
    folder = tmp_path / "home/cache/kernels"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.iterdir())) == 1


def test_without_a_compiler_or_with_one_that_fails_products_are_pytorchs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    says_nothing = script(tmp_path / "nothing", "exit 0")
    fails = script(tmp_path / "fails", 'case "$*" in *--version) echo 1;; *) exit 1;; esac')
    environments = [{"PATH": str(tmp_path / "empty"), "CC": ""}]
    environments += [{"CC": each} for each in (says_nothing, fails)]
    for environment in environments:
        assert said(started(tmp_path / "home", **environment)) == "True False"


def test_a_compiler_that_makes_something_else_is_found_out(tmp_path: Path) -> None:
    altered = 'for last; do :; done; sed "s/-8 \\* total/-7 * total/" "$last" > "$0.c"'
    words = 'for word; do shift; [ "$word" = "$last" ] || set -- "$@" "$word"; done; exec cc "$@" "$0.c"'
    compiler = script(
        tmp_path / "other", f'case "$*" in *--version) exec cc --version;; esac\n{altered}\n{words}'
    )
    assert said(started(tmp_path / "home", CC=compiler)) == "True False"


@pytest.mark.parametrize("damage", ["garbage", "short", "empty", "folder"])
def test_a_damaged_library_is_made_again(damage: str, tmp_path: Path) -> None:
    assert said(started(tmp_path)) == "True True"
    (library,) = (tmp_path / "cache/kernels").iterdir()
    whole = library.read_bytes()
    if damage == "folder":
        library.unlink()
        library.mkdir()
    else:
        library.write_bytes(
            {"garbage": b"\x7fELF" + b"?" * 9000, "short": whole[:9000], "empty": b""}[damage]
        )
    assert said(started(tmp_path)) == "True True"
    if damage != "folder":
        assert library.read_bytes() == whole


def test_where_the_cache_cannot_be_trusted_or_used_it_is_made_for_one_process(tmp_path: Path) -> None:
    kernels = tmp_path / "open/cache/kernels"
    kernels.mkdir(parents=True)
    kernels.chmod(0o777)
    assert said(started(tmp_path / "open")) == "True True"
    assert not list(kernels.iterdir())
    (tmp_path / "file/cache").mkdir(parents=True)
    (tmp_path / "file/cache/kernels").write_text("in the way")
    assert said(started(tmp_path / "file")) == "True True"


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    both = [started(tmp_path) for _ in range(2)]
    assert [said(each) for each in both] == ["True True"] * 2
    assert len(list((tmp_path / "cache/kernels").iterdir())) == 1


def test_one_openmp_runtime_is_shared_with_pytorch() -> None:
    assert int4_kernel.kernel(row_block()) is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if "libgomp" in line}
    assert len(runtimes) == 1
