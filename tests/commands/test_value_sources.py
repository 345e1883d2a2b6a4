"""An error blames the place that a value is from."""

from pathlib import Path

import pytest
from support.program import Program

from localgemma_cli.commands.value_sources import ValueSources
from localgemma_cli.errors import UsageError

FLAGS = {
    "top-p": ("--top-p",),
    "model": ("--model", "-m"),
    "offline": ("--offline",),
    "preset": ("--preset",),
}


def blamed(
    message: str, hint: str = "", *, words: tuple[str, ...] = (), environ: dict, config: dict
) -> tuple[str, str]:
    error = UsageError(message, hint)
    ValueSources(words, environ, [(Path("/c.toml"), config)], FLAGS).name_places(error)
    return error.message, error.hint


@pytest.mark.parametrize(
    ("words", "environ", "config", "named"),
    [
        (("--top-p", "2"), {"LOCALGEMMA_TOP_P": "2"}, {"top-p": 2}, "--top-p"),
        (("--top-p=2",), {"LOCALGEMMA_TOP_P": "2"}, {}, "--top-p"),
        (("--", "--top-p"), {"LOCALGEMMA_TOP_P": "2"}, {"top-p": 2}, "LOCALGEMMA_TOP_P"),
        ((), {}, {"top-p": 2}, "top-p in /c.toml"),
        ((), {}, {}, "--top-p"),
    ],
)
def test_option_variable_and_file_are_told_apart(
    words: tuple[str, ...], environ: dict, config: dict, named: str
) -> None:
    message, _ = blamed("--top-p is out of range.", words=words, environ=environ, config=config)
    assert message == f"{named} is out of range."


def test_advice_to_remove_an_option_names_what_to_unset() -> None:
    forbids = ("--offline forbids it.", "Remove --offline.")
    assert blamed(*forbids, environ={"LOCALGEMMA_OFFLINE": "1"}, config={}) == (
        "LOCALGEMMA_OFFLINE forbids it.",
        "Unset LOCALGEMMA_OFFLINE.",
    )
    assert blamed(*forbids, environ={}, config={"offline": True})[1] == "Remove offline in /c.toml."


def test_a_value_that_is_quoted_without_its_option_is_traced() -> None:
    quoted = ("There is no model 'x'.", "Check it.")
    assert "LOCALGEMMA_MODEL" in blamed(*quoted, environ={"LOCALGEMMA_MODEL": "x"}, config={})[1]
    assert blamed(*quoted, words=("-mx",), environ={"LOCALGEMMA_MODEL": "x"}, config={}) == quoted


def test_the_program_blames_the_variable(program: Program) -> None:
    with_variable = program.with_environment(LOCALGEMMA_TOP_P="warm", LOCALGEMMA_OFFLINE="1")
    assert "LOCALGEMMA_TOP_P" in with_variable("-m", "demo", "hi").stderr.splitlines()[0]
    done = with_variable("models", "pull", "2b")
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "  Unset LOCALGEMMA_OFFLINE.")
    by_client = program.with_environment(HF_HUB_OFFLINE="1")("models", "pull", "2b")
    assert (by_client.returncode, by_client.stderr.splitlines()[1]) == (2, "  Unset HF_HUB_OFFLINE.")
