"""What is wrong with a command line, in the words of the program."""

import pytest
from support.program import Program


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--top-p", "warm"], "--top-p must be a number (got 'warm').", ""),
        (["--top-k", "1.5"], "--top-k must be a whole number (got '1.5').", ""),
        (["--mode", "wild"], "--mode must be one of chat, factual, creative (got 'wild').", ""),
        (["--top-p"], "--top-p needs a value.", ""),
        (["--json=yes"], "--json does not accept a value.", ""),
        (["--temprature", "1"], "Unknown option: --temprature.", "Did you mean --temperature?"),
        (["models", "rm"], "NAME is missing.", "localgemma models rm --help"),
        (["models", "list", "x"], "Unexpected argument: x.", "localgemma models list --help"),
        (["models", "lst"], "Unknown command: 'lst'.", "localgemma models --help"),
    ],
)
def test_a_wrong_command_line(program: Program, words: list[str], message: str, hint: str) -> None:
    done = program(*words)
    assert done.returncode == 2
    first, second = done.stderr.splitlines()
    assert first == f"localgemma: {message}"
    assert hint in second
    assert "--help" in second


@pytest.mark.parametrize("option", ["--model", "--regex", "--schema", "--file", "--system-file", "--adapter"])
def test_an_empty_value_is_named_with_its_option(program: Program, option: str) -> None:
    """A script's variable that is not set: `-m "$MODEL"`."""
    done = program("-m", "demo", "-n", option, "", "Who are you?")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"localgemma: {option} is empty.\n  Give a value, or remove {option}.\n"


def test_a_wrong_value_of_a_variable_or_the_file_names_its_place(program: Program) -> None:
    done = program.with_environment(LOCALGEMMA_TOP_P="warm")("-m", "demo", "hi")
    assert done.stderr.splitlines()[0] == "localgemma: LOCALGEMMA_TOP_P must be a number (got 'warm')."
    file = program.config / "config.toml"
    file.write_text("mode = 'wild'\n")
    done = program("-m", "demo", "hi")
    place = f"mode in {file}"
    assert done.stderr.splitlines()[0] == (
        f"localgemma: {place} must be one of chat, factual, creative (got 'wild')."
    )
