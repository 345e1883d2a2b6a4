"""A mistyped command is never a prompt for a model."""

import pytest
from support.program import Program

from localgemma_cli.commands.mistyped import refuse_bare_word, refuse_near_commands
from localgemma_cli.errors import ExitCode, UsageError

MEANT = {
    "plna": "plan",
    "plna --all": "plan --all",
    "Plan": "plan",
    "modles list": "models list",
    "histroy": "history",
    "promt hello": "prompt hello",
    "promts list": "prompts list",
    "save translate": "prompts save translate",
    "benhc": "bench",
    "list": "models list",
    "pull 2b": "models pull 2b",
    "rm 2b": "models rm 2b",
    "rm 12": "history rm 12",
    "show 12": "history show 12",
    "run gemma2:9b": "-m 9b",
}


@pytest.mark.parametrize(("typed", "meant"), MEANT.items(), ids=MEANT)
def test_a_first_word_near_a_commands_suggests_it(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_near_commands(typed.split())
    assert caught.value.exit_code == ExitCode.USAGE
    assert f"localgemma {meant}?" in caught.value.hint
    assert "localgemma -- " in caught.value.hint


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("help", "--help"),
        ("version", "--version"),
        ("templates", "prompts list"),
        ("9B", "-m 9b"),
        ("hello", None),
    ],
)
def test_one_bare_word_is_no_prompt(word: str, meant: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_bare_word(word)
    assert word in caught.value.message
    assert (f"localgemma {meant}?" if meant else "localgemma --help") in caught.value.hint


@pytest.mark.parametrize(
    "words",
    [["plna my week"], ["list", "three", "rivers"], ["explain", "this"], ["show", "me", "how"], ["why?"]],
    ids=" ".join,
)
def test_a_question_is_a_question(words: list[str]) -> None:
    refuse_near_commands(words)


@pytest.mark.parametrize("word", ["why?", "2+2", "你好", "What is a river"])
def test_what_no_command_looks_like_is_a_prompt(word: str) -> None:
    refuse_bare_word(word)


def test_the_program_asks_no_model(program: Program) -> None:
    for words in (["plna"], ["pull", "2b"], ["hello"], ["-q", "list"]):
        done = program(*words)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Unknown command" in done.stderr
    # behind --, or with what was piped, one word is a question: the default model is what is missing
    assert program("--", "hello").returncode == 4
    assert program("Summarize", stdin="A text.").returncode == 4


def test_with_a_model_that_is_named_one_word_is_a_prompt(program: Program) -> None:
    (program.config / "config.toml").write_text('model = "demo"\nmax-new-tokens = 4\n')
    done = program("Hello")
    assert (done.returncode, done.stderr) == (0, "")
