"""Ctrl-C at any moment of the start: exit code 130 at once, and not a word."""

import pytest
from support.program import Program

# As a library does that turns whatever an import raises into an error or a default of its own.
_SWALLOWING = """
import signal, sys

class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass

sys.meta_path.insert(0, Hook())
"""


@pytest.mark.parametrize(
    "module", ["localgemma_cli.cli", "typer", "localgemma_cli.chat.one_shot", "torch", "transformers"]
)
def test_a_ctrl_c_that_an_import_swallows(program: Program, module: str) -> None:
    (program.folder / "sitecustomize.py").write_text(_SWALLOWING.format(module=module))
    interrupted = program.with_environment(PYTHONPATH=str(program.folder))
    done = interrupted("-m", "demo", "--max-new-tokens", "2", "Hello")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_ctrl_c_that_is_to_be_ignored_is(program: Program) -> None:
    """As for what a script starts in the background."""
    (program.folder / "sitecustomize.py").write_text(
        f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{_SWALLOWING.format(module='typer')}"
    )
    done = program.with_environment(PYTHONPATH=str(program.folder))("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
