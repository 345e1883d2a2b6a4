"""Options are declared once, and every command, variable and key of config.toml follows from that."""

from dataclasses import fields
from typing import Any

import pytest
import typer

from localgemma_cli.cli import build_app
from localgemma_cli.command_options import SPECS, defaults_from, drop_weaker, options_of, takes_options
from localgemma_cli.options import Options
from localgemma_cli.sampling import Sampling

COMMANDS = ("chat", "plan", "prompt", "bench", "batch")


def parameters(command: str) -> dict[str, Any]:
    """Those that Typer has made of a command, by name."""
    app: Any = typer.main.get_command(build_app([] if command == "chat" else [command]))
    found = app.commands["<chat>" if command == "chat" else command]
    return {each.name: each for each in found.params}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_the_options_of_the_table_with_their_flags_and_variables(command: str) -> None:
    made, specs = parameters(command), options_of(command)
    assert set(made) - set(specs) <= {"prompt", "version", "all_", "input"}
    for name, spec in specs.items():
        flags = [flag for part in spec.flags for flag in part.split("/")]
        assert [*made[name].opts, *made[name].secondary_opts] == flags
        assert made[name].envvar == spec.variable == "LOCALGEMMA_" + spec.key.upper().replace("-", "_")
        assert made[name].help == spec.help


def test_every_option_is_taken_by_a_command_and_a_key_means_one_thing() -> None:
    assert all(spec.commands for spec in SPECS.values())
    for command in COMMANDS:
        keys = [spec.key for spec in options_of(command).values()]
        assert len(set(keys)) == len(keys)
    made_of_several = {"constraint"}
    assert {each.name for each in fields(Sampling)} - made_of_several <= set(options_of("chat"))


def test_a_function_gets_its_command_s_options_as_one_value() -> None:
    @takes_options("prompt")
    def answer(options: Options, words: str) -> tuple[Options, str]:
        return options, words

    assert answer(words="x", model="2b") == (Options(model="2b"), "x")
    assert answer(words="x") == (Options(), "x")


def test_a_key_of_config_toml_is_a_default_of_the_commands_that_have_the_option() -> None:
    config = {"preset": "exact", "top-p": 0.5, "continue": True, "file": "a.txt"}
    assert defaults_from(config, "plan") == {"preset": "exact"}
    assert defaults_from(config, "bench") == {"presets": ["exact"]}
    chat = {"preset": "exact", "top_p": 0.5, "continue_": True, "file": ["a.txt"]}
    assert defaults_from(config, "chat") == chat


def test_of_options_that_exclude_each_other_the_strongest_place_wins() -> None:
    options = Options(schema="{}", regex="a", json=True, jsonl=True, system="a", system_file="b")
    places = {
        **{"schema": "DEFAULT_MAP", "regex": "COMMANDLINE", "choice": "COMMANDLINE"},
        **{"json": "ENVIRONMENT", "jsonl": "ENVIRONMENT"},
        **{"system": "ENVIRONMENT", "system_file": "DEFAULT_MAP"},
    }
    assert drop_weaker(options, places) == Options(regex="a", json=True, jsonl=True, system="a")


def test_help_is_imperative_and_ends_in_the_default() -> None:
    for spec in SPECS.values():
        assert spec.help[0].isupper()
        assert spec.help.endswith(".")
        text, _, default = spec.help.partition(" Default: ")
        assert text.endswith(".")
        assert "Default" not in default
