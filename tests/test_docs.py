"""The README and docs/ against the program: commands parse, files exist, tables equal the code."""

import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.program import Program

from localgemma_cli.chat.slash.slash_commands import COMMANDS as SLASH_COMMANDS
from localgemma_cli.cli import CHAT, build_app
from localgemma_cli.commands.mistyped import COMMAND_NAMES
from localgemma_cli.models.catalog import HUB_MODELS, catalogue
from localgemma_cli.planning.hardware import Hardware
from localgemma_cli.planning.plan import Overrides, make_plan
from localgemma_cli.planning.presets import Preset

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ENDS = ("|", "||", "&&", ";", "<", ">", "#", "&")  # of one command on a shell's line
NOT_OURS = ("pip", "pipx", "uv", "pull")  # words before a `localgemma` that is a package or an argument


def ids(path: Path) -> str:
    return path.name


def code_of(text: str) -> Iterator[str]:
    """Lines of code blocks and pieces of inline code."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    prose = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose)
    yield from (line.strip() for line in prose.splitlines() if line.startswith("    "))


def commands_of(line: str) -> Iterator[list[str]]:
    """The words after each `localgemma` that is run in a line."""
    line = re.sub(r"<\([^)]*\)", "FILE", line)  # a command's output as a file
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    try:
        words = list(lexer)
    except ValueError:  # prose with an apostrophe, not a command
        return
    for place, word in enumerate(words):
        starts = place == 0 or words[place - 1] in ENDS or "=" in words[place - 1]
        if starts and (word == "localgemma" or word.endswith("/localgemma")):
            rest = words[place + 1 :]
            end = next((n for n, each in enumerate(rest) if each in ENDS), len(rest))
            yield [each for each in rest[:end] if each not in ("…", "...")]


def documented_commands() -> list[tuple[str, list[str]]]:
    return [
        (page.name, words)
        for page in PAGES
        for line in code_of(page.read_text(encoding="utf-8"))
        for words in commands_of(line)
    ]


@pytest.fixture(scope="module")
def app() -> Any:
    return typer.main.get_command(build_app(COMMAND_NAMES))


def test_there_are_commands_to_check() -> None:
    assert len(documented_commands()) > 50


@pytest.mark.parametrize(("page", "words"), documented_commands(), ids=lambda each: str(each)[:60])
def test_a_documented_command_parses(
    app: Any, page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every option exists and has its value, every subcommand and argument is known."""
    if "-p" in words:
        monkeypatch.setenv("LOCALGEMMA_HOME", str(tmp_path))
        prompt = tmp_path / "config" / "prompts" / f"{words[words.index('-p') + 1]}.toml"
        prompt.parent.mkdir(parents=True)
        prompt.touch()
    context, words = app.make_context("localgemma", [], resilient_parsing=True), list(words)
    command = app.commands[CHAT]
    if words and words[0] in app.commands:
        command = app.commands[words.pop(0)]
    elif words in (["--install-completion"], ["--show-completion"]):
        return
    while words and words[0] in getattr(command, "commands", {}):
        context = command.make_context(words[0], [], parent=context, resilient_parsing=True)
        command = command.commands[words.pop(0)]
    if {"--help", "-h", "--version"} & set(words):
        words = [word for word in words if word not in ("--help", "-h", "--version")]
    command.make_context("localgemma", words, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", each).replace(" ", "-").lower() for each in headings}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=ids)
def test_paths_of_the_repository_exist(page: Path) -> None:
    """`folder/file.py` in inline code, from the root or from the package."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text):
        top = path.split("/")[0]
        is_path = path.endswith((".py", ".c", ".h", "/")) or top in ("docs", "tests", "localgemma_cli")
        if is_path and "NAME" not in path:
            places = (ROOT, ROOT / "localgemma_cli", ROOT / "localgemma_cli/backends/pytorch")
            assert any((place / path).exists() for place in places), path


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 900


def table_after(page: Path, header: str) -> list[list[str]]:
    """The cells of the rows below the header that begins so, without the marks of code."""
    lines = iter(page.read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(header):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        rows.append([cell.strip().replace("`", "") for cell in cells])
    return rows


def leaves(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its name."""
    inner = getattr(command, "commands", {})
    if not inner:
        yield name, command
    for each, below in inner.items():
        yield from leaves(below, f"{name} {each}".strip())


def options_of(app: Any) -> list[list[str]]:
    """Flags, variable and key of every option that has a variable, the chat's first."""
    chat = {param.envvar for param in app.commands[CHAT].params}
    found: dict[str, list[str]] = {}
    for _, command in leaves(app):
        for param in command.params:
            if param.param_type_name == "option" and param.envvar:
                flags = ", ".join([*param.opts, *param.secondary_opts])
                key = param.opts[0].removeprefix("--") if param.envvar in chat else "–"
                found.setdefault(param.envvar, [flags, param.envvar, key])
    return list(found.values())


def test_the_table_of_options_is_the_program_s(app: Any) -> None:
    expected = options_of(app)
    table = "\n".join("| " + " | ".join(f"`{c}`" if c != "–" else c for c in row) + " |" for row in expected)
    rows = table_after(ROOT / "docs/configuration.md", "| option | variable | key |")
    assert rows == expected, f"The table would be:\n{table}"


def test_the_table_of_slash_commands_is_the_chat_s() -> None:
    rows = table_after(ROOT / "docs/chat.md", "| command | |")
    assert [row[0].split()[0] for row in rows] == list(SLASH_COMMANDS)


def test_the_docs_name_every_model_with_its_size() -> None:
    text = " ".join(cell for row in table_after(ROOT / "docs/models.md", "| `--model` |") for cell in row)
    assert {facts.name for facts in catalogue()} <= set(re.split(r"[ ,]+", text))
    for facts in HUB_MODELS:
        assert f"{facts.id}" in text
        assert f"{facts.architecture.parameters / 1e9:.1f} billion" in text
        assert f"{2 * facts.architecture.parameters / 1e9:.1f} GB" in text


def test_the_readme_s_memory_is_what_the_plan_needs(
    desktop_cpu: Hardware, server_cpu: Hardware, gpu: Hardware, presets: Mapping[str, Preset]
) -> None:
    """Rounded up to whole gigabytes, for int4 and for NF4 on a CPU."""
    for name, _, *figures in table_after(README, "| model | parameters |"):
        facts = next(each for each in HUB_MODELS if each.name == name)
        for cpu in (desktop_cpu, server_cpu):
            needed = [
                make_plan(facts, preset, machine, Overrides(), presets).memory.total_bytes
                for machine in (cpu, gpu)
                for preset in ("memory", "exact")
            ]
            assert [int(each) for each in figures] == [math.ceil(each / 1e9) for each in needed]


_TRACE = """
import os, sys, threading
called, stacks = {}, {}

def files_of(frame):
    while frame:
        if frame.f_code.co_filename.startswith(ROOT) and frame.f_code.co_name != "<module>":
            yield os.path.relpath(frame.f_code.co_filename, ROOT)
        frame = frame.f_back

def profile(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_filename.startswith(ROOT) and code.co_name != "<module>":
        called.setdefault(os.path.relpath(code.co_filename, ROOT))
        if code.co_name in ("load_model", "generate", "delta"):
            stacks.setdefault(code.co_name, list(files_of(frame)))

def leave(code):
    sys.setprofile(None)
    print(json.dumps([list(called), stacks]), file=sys.__stderr__, flush=True)
    end(code)

end, os._exit = os._exit, leave
sys.argv = ["localgemma", "-m", "demo", "-q", "--max-new-tokens", "2", "-"]
import localgemma_cli.backends.pytorch.backend  # slow to import while calls are traced
from localgemma_cli.__main__ import main
sys.setprofile(profile)
threading.setprofile(profile)
main()
"""


def test_the_way_of_a_prompt_is_the_documented_one(program: Program) -> None:
    """Every module on the call stack of loading, decoding and printing is in the table."""
    table = table_after(ROOT / "docs/architecture.md", "| file | does | with |")
    way = [row[0] for row in table]
    assert len(way) <= 14
    trace = f"import json\nROOT = {str(ROOT / 'localgemma_cli')!r}\n{_TRACE}"
    done = subprocess.run(
        [sys.executable, "-c", trace],
        input="Hello",
        capture_output=True,
        text=True,
        env={**program.env, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )
    called, stacks = json.loads(done.stderr.splitlines()[-1])
    assert set(way) <= set(called)
    assert set(stacks) == {"load_model", "generate", "delta"}
    named = " ".join(cell for row in table for cell in row).replace(",", " ").split()
    assert {file for files in stacks.values() for file in files} <= set(named)


def test_the_workflow_covers_the_versions_that_the_package_promises() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))["jobs"]
    tested = jobs["test"]["strategy"]["matrix"]["python"]
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert tested == promised
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0][
        "hooks"
    ]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
