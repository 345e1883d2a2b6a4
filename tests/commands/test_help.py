"""Help, lists and messages as people see them: in shape, in colour, and in narrow terminals."""

import re
from typing import Any

import pytest
import typer
from support.program import Program
from support.terminal import Terminal

from localgemma_cli.cli import CHAT, build_app
from localgemma_cli.commands.mistyped import COMMAND_NAMES
from localgemma_cli.options import OPTION_GROUPS


def test_help_has_examples_first_and_options_under_headings(program: Program) -> None:
    text = program("-h").stdout
    places = [text.index(f"\n{name}:\n") for name in OPTION_GROUPS]
    assert text.index("Examples:") < places[0]
    assert places == sorted(places)
    assert text.index("--temperature") > text.index("\nSampling:\n")
    assert text.index("--device-memory") > text.index("\nMemory and speed:\n")
    assert "--install-completion" in text
    assert program("plan", "-h").stdout == program("plan", "--help").stdout


def test_h_is_help_with_an_example_for_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    app: Any = typer.main.get_command(build_app(COMMAND_NAMES))
    groups = {name: command for name, command in app.commands.items() if name != CHAT}
    paths = [[], *([name] for name in groups)]
    paths += [[name, inner] for name, group in groups.items() for inner in getattr(group, "commands", {})]
    assert len(paths) > 20
    for path in paths:
        app.main([*path, "-h"], prog_name="localgemma", standalone_mode=False)
        text, name = capsys.readouterr().out, " ".join(["localgemma", *path])
        assert name in text.split("Example", 1)[1], path
        arguments = text.partition("\n")[0].removeprefix(f"Usage: {name} ")
        assert not re.search("[a-z{}]", arguments), path
        assert not re.search(r"<(str|list|path)|\[default: ", text), path  # Python's words


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize("words", [["--help"], ["models", "-h"], ["plan", "-h"]], ids=" ".join)
def test_help_fits_a_narrow_terminal(program: Program, words: list[str], columns: int) -> None:
    done = program.with_environment(COLUMNS=str(columns))(*words)
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= columns
    assert "..." not in done.stdout.replace("[PROMPT]...", "").replace("[ARGS]...", "").replace(
        "PROMPT...", ""
    )


@pytest.mark.parametrize("columns", [40, 60])
def test_lists_fit_a_narrow_terminal(program: Program, columns: int) -> None:
    narrow = program.with_environment(COLUMNS=str(columns))
    plans = narrow("plan", "--all", "--device", "cuda", "--device-memory", "24GiB").stdout
    nine = plans.split("\n9b\n")[1].split("\n27b\n")[0].splitlines()
    assert [line.split()[0] for line in nine] == ["exact", "speed", "memory", "memory_extreme"]
    assert all(line.endswith("fits") for line in nine)
    models = narrow("models").stdout
    for text in (plans, models):
        assert max(len(line) for line in text.splitlines() if len(line.split()) > 1) <= columns
    assert "google/gemma-2-9b-it" in models


def test_what_kind_of_message_it_is_shows_in_colour_where_colour_is_on(program: Program) -> None:
    words = ["-m", "nonsense", "Hello there"]
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        with Terminal(program.with_environment(**environment), words) as terminal:
            assert terminal.wait_for_end(120) == 4
        assert (b"\x1b[1;31mlocalgemma:\x1b[0m" in terminal.raw) is coloured
    assert "\x1b" not in program(*words).stderr
