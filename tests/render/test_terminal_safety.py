"""Every message for a terminal goes through one of a few functions that make it safe."""

import ast
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

import localgemma_cli
from localgemma_cli.environment import LibraryStream, Streams
from localgemma_cli.errors import LocalGemmaError
from localgemma_cli.events import LoadProgress
from localgemma_cli.render.console import SafeConsole
from localgemma_cli.render.json import write_line
from localgemma_cli.render.messages import format_error
from localgemma_cli.render.progress import show_progress
from localgemma_cli.sanitize import Block

PACKAGE = Path(localgemma_cli.__file__).parent
TOOLS = ("demo/precision.py", "demo/evaluate.py")  # run by hand, with figures of their own
DOORS = {"environment.py", "render/console.py", "render/json.py", "render/markdown.py", "render/plain.py"}
OWN_ESCAPES = {"chat/terminal/clipboard.py"}  # what is copied goes as base64
PIPES = {"prompts/template_worker.py", "warm/process.py"}  # processes whose output only the program reads
STREAMS = {"stdout", "stderr", "_stdout", "_stderr", "terminal", "_terminal"}


def offences(path: Path) -> Iterator[str]:
    """Direct writes to a terminal."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    harmless = set(_guarded(tree))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node) in ("sys.stdout", "sys.stderr")
            and node not in harmless
        ):
            yield f"{node.lineno}: {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        *owner, method = called.split(".")
        writes = method in ("write", "writelines") and bool(owner) and owner[-1] in STREAMS
        prints = called in ("print", "Console", "rich.print") or method.startswith("print_exc")
        echoes = called in ("typer.echo", "typer.secho", "click.echo") and "__version__" not in ast.unparse(
            node
        )
        if writes or prints or echoes:
            yield f"{node.lineno}: {called}"


def _guarded(tree: ast.AST) -> Iterator[ast.AST]:
    """Streams that are only flushed, compared or passed on to a safe function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield node.left
        elif isinstance(node, ast.Attribute) and node.attr == "flush":
            yield node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "LibraryStream":
            yield from node.args


SOURCES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("name", sorted({*SOURCES} - DOORS - OWN_ESCAPES - PIPES - {*TOOLS}))
def test_no_module_writes_to_the_terminal_directly(name: str) -> None:
    assert not list(offences(PACKAGE / name))


def test_direct_writes_are_detected(tmp_path: Path) -> None:
    ways = [
        "print(1)",
        "sys.stderr.write('')",
        "streams.stdout.write(x)",
        "rich.console.Console",
        "Console()",
    ]
    ways += [
        "traceback.print_exception(e, file=streams.stderr)",
        "typer.echo(name)",
        "self._terminal.write(x)",
    ]
    file = tmp_path / "m.py"
    for way in ways:
        file.write_text(way)
        assert bool(list(offences(file))) is (way != "rich.console.Console"), way


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


RAW = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x061C, 0x200E, 0x200F)} - {"\n", "\t"}
RAW |= {chr(code) for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
HOSTILE = (
    "\x1b]52;c;UFdO\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\x1b]0;t\x1b\\",
    "\u202egnp.exe",
    "a\rb",
    "\x00\x7f",
)
hostile = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(max_size=5), st.sampled_from(["\n", "[red]"])))


def streams() -> Streams:
    return Streams(io.StringIO("yes\n"), Tty(), Tty())


def written(to: Streams) -> str:
    return to.stdout.getvalue() + to.stderr.getvalue()  # type: ignore[attr-defined]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=hostile.map("".join))
def test_no_control_characters_reach_the_terminal(text: str) -> None:
    out = streams()
    out.say(text)
    out.say(Block(text))
    out.show(text)
    out.emit(text)
    assert out.ask(text) == "yes"
    out.say(format_error(LocalGemmaError(text, text)))
    LibraryStream(out.stderr, shown=True).write(text)
    write_line(out.stdout, {text: text})
    assert not RAW & set(written(out))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=hostile.map("".join))
def test_tables_and_progress_have_only_the_programs_own_control_characters(text: str) -> None:
    def drawn(name: str) -> str:
        from rich.table import Table

        out, table = streams(), Table(name)
        table.add_row(name, Text(name))
        SafeConsole(out.stdout, 400).print(table)
        with show_progress(out.stderr, quiet=False) as progress:
            progress(LoadProgress(name))
        return written(out)

    assert RAW & set(drawn(text)) <= RAW & set(drawn("plain"))
    for escape in HOSTILE:
        assert escape not in drawn(text)


def test_a_quoted_line_end_does_not_begin_a_new_message() -> None:
    out = streams()
    out.say("[with a\nlocalgemma: All is well.]")
    out.say(format_error(LocalGemmaError("no\nlocalgemma: yes", "do\n  rm -rf"), "localgemma: "))
    assert written(out).splitlines() == [
        "[with a",
        "  localgemma: All is well.]",
        "localgemma: no localgemma: yes",
        "  do rm -rf",
    ]


def test_the_programs_own_colours_are_kept() -> None:
    out = streams()
    out.say("a\x1b[0m", lambda safe: f"\x1b[31m{safe}\x1b[0m")
    assert written(out) == "\x1b[31ma␛[0m\x1b[0m\n"


def test_output_of_libraries_is_suppressed() -> None:
    out = streams()
    assert LibraryStream(out.stderr, shown=False).write("UserWarning") == 11
    assert not written(out)


@pytest.mark.parametrize("verbose", [False, True])
def test_warnings_logs_and_bars_of_libraries_are_shown_only_with_verbose(verbose: bool) -> None:
    code = (
        "import logging, sys, warnings\n"
        "from localgemma_cli.environment import hide_library_output, standard_streams\n"
        "streams = standard_streams()\n"
        f"hide_library_output(streams, verbose={verbose})\n"
        "handler = logging.StreamHandler()\n"  # as transformers makes one while it is imported
        "logging.getLogger('lib').addHandler(handler)\n"
        "logging.getLogger('lib').warning('of a\\x1b[2J handler')\n"
        "logging.getLogger('other').warning('of the last\\x1b[2J resort')\n"
        "warnings.warn('of Python\\x1b[2J', stacklevel=1)\n"
        "sys.stderr.write('a bar')\n"
        "standard_streams().say('our own')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "our own" in done.stderr
    assert "\x1b" not in done.stderr
    for theirs in ("of a", "of the last", "of Python", "a bar"):
        assert (theirs in done.stderr) is verbose
