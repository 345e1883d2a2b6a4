"""Which parts of torch and transformers are imported when, and that all of them work once they are needed."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import pytest
from support.program import Program

from localgemma_cli.backends.pytorch.lean_import import DeferredPackage, decorate_later, defer_package


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The code of a package `sample_package` with a submodule `part`."""
    folder = tmp_path / "outer" / "sample_package"
    folder.mkdir(parents=True)
    (tmp_path / "outer" / "__init__.py").touch()
    for part in ("part", "other"):
        (folder / f"{part}.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder / "__init__.py"
    for name in [name for name in sys.modules if name.partition(".")[0] == "outer"]:
        del sys.modules[name]


def deferred(code: Path, text: str, parts: Sequence[str] | None = None) -> DeferredPackage:
    code.write_text(text)
    outer = import_module("outer")
    package = defer_package("outer.sample_package", parts)
    assert outer.sample_package is package
    assert isinstance(package, DeferredPackage)
    return package


def test_a_deferred_package_runs_when_an_attribute_is_read(sample: Path) -> None:
    package = deferred(sample, "from . import part\ntotal = part.VALUE + 1")
    assert import_module("outer.sample_package.part").VALUE == 7
    assert isinstance(package, DeferredPackage)  # a submodule does not need it
    assert package.total == 8
    assert not isinstance(package, DeferredPackage)
    with pytest.raises(AttributeError, match="nothing"):
        package.nothing  # noqa: B018
    assert defer_package("outer.sample_package") is package


def test_only_named_submodules_are_imported_without_the_package(sample: Path) -> None:
    package = deferred(sample, "ran = True", ["part"])
    assert import_module("outer.sample_package.part").VALUE == 7
    assert isinstance(package, DeferredPackage)
    assert import_module("outer.sample_package.other").VALUE == 7
    assert not isinstance(package, DeferredPackage)
    assert (package.ran, package.part.VALUE, package.other.VALUE) == (True, 7, 7)


def test_a_package_may_put_another_module_in_its_place(sample: Path) -> None:
    text = (
        "import sys, types\nother = types.ModuleType(__name__)\nother.late = 3\nsys.modules[__name__] = other"
    )
    package = deferred(sample, text)
    assert package.late == 3
    assert package.__getattr__("late") == 3  # whoever still has the first module
    assert not hasattr(package, "nothing")


def test_a_package_that_fails_says_so_each_time(sample: Path) -> None:
    package = deferred(sample, "raise OSError('no such luck')")
    for _ in range(2):
        with pytest.raises(OSError, match="no such luck"):
            package.anything  # noqa: B018


def test_a_function_is_decorated_once_the_package_has_run(sample: Path) -> None:
    package = deferred(sample, "def louder(function, by=1):\n    return lambda: function() + by")
    now, then = (
        decorate_later(package, "louder")(lambda: 1),
        decorate_later(package, "louder")(by=5)(lambda: 1),
    )
    assert (now(), then()) == (1, 1)
    package.run()
    assert (now(), then()) == (2, 6)


def python(program: Program, code: str) -> list[str]:
    """The lines that the code prints after `import_frameworks`."""
    start = "from localgemma_cli.backends.pytorch.lean_import import import_frameworks\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, env=program.env, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_compilation_works_after_a_lean_import(program: Program) -> None:
    code = """
reports = []
import_frameworks(reports.append, "cpu")
import sys, torch
done = [each.done for each in reports]
print({each.stage for each in reports}, len(done) > 5, done == sorted(done), reports[-1].total < 2 * done[-1])
print("torch._dynamo.convert_frame" in sys.modules, torch.distributed.is_available())
step = torch.compile(lambda x: x * 2 + 1, backend="eager", fullgraph=True)
print(step(torch.ones(2)).tolist(), "torch._dynamo.convert_frame" in sys.modules)
from transformers import AutoModelForCausalLM
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.models import gemma2
print(AutoModelForCausalLM.__name__, gemma2.Gemma2Config.__name__)
"""
    assert python(program, code) == [
        "{'starting PyTorch'} True True True",
        f"False {sys.platform != 'emscripten'}",
        "[3.0, 3.0] True",
        "AutoModelForCausalLM Gemma2Config",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, where they are linked early")
def test_the_libraries_of_torch_are_linked_without_python(program: Program) -> None:
    code = """
import sys
from localgemma_cli.backends.pytorch.lean_import import link_torch
link_torch()
print("libtorch_cpu" in open("/proc/self/maps").read(), "torch" in sys.modules)
"""
    assert python(program, code) == ["True False"]


def test_where_the_lean_import_fails_all_is_imported(program: Program) -> None:
    code = """
import sys
class Breaks:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.safetensors_conversion":  # one of the last
            sys.meta_path.remove(self)
            raise ImportError(name)
sys.meta_path.insert(0, Breaks())
import_frameworks(lambda progress: None, "cpu")
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM
from transformers.utils import is_torch_distributed_available
print(len(sys.meta_path), is_torch_distributed_available(), "torch.distributed.tensor" in sys.modules)
"""
    (line,) = python(program, code)
    assert line.endswith("True True")


def test_for_a_gpu_all_is_imported(program: Program) -> None:
    code = """
import_frameworks(lambda progress: None, "cuda")
import sys
print("torch.distributed.tensor" in sys.modules)
"""
    assert python(program, code) == ["True"]
