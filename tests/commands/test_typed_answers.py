"""Answers of a form, as scripts see them: stdout is whole or empty, and the exit code says which."""

import json

import pytest
from support.program import Program
from support.schemas import validate

from localgemma_cli.chat.typed_answer import show_typed
from localgemma_cli.constraint import Choices
from localgemma_cli.errors import IncompleteAnswer, LocalGemmaError
from localgemma_cli.events import Finished, Timing, Usage
from localgemma_cli.render.base import Answer

SCHEMA = """{
  "type": "object",
  "properties": {"size": {"type": "integer", "minimum": 0, "maximum": 99}, "name": {"enum": ["é", "b"]}},
  "required": ["size", "name"]
}"""
QUESTION = "What is the memory preset?"


def ask(program: Program, *words: str) -> "tuple[int, str, str]":
    done = program("-m", "demo", "--no-save", *words)
    return done.returncode, done.stdout, done.stderr


def test_a_schema_from_a_file_gives_one_line_of_json(program: Program) -> None:
    (program.folder / "s.json").write_text(SCHEMA, encoding="utf-8")
    code, out, errors = ask(program, "--schema", "s.json", "--temperature", "0", QUESTION)
    assert (code, errors) == (0, "")
    assert out.count("\n") == 1
    assert set(json.loads(out)) == {"size", "name"}


def test_json_has_the_value_beside_the_text(program: Program) -> None:
    code, out, _ = ask(program, "--schema", SCHEMA, "--json", "--seed", "1", QUESTION)
    answer = json.loads(out)
    validate(answer, "answer")
    assert code == 0
    assert answer["parsed"] == json.loads(answer["response"])
    assert answer["finish_reason"] == "stop"
    assert "choices" not in answer


def test_json_lines_have_the_whole_answer_in_one_piece(program: Program) -> None:
    code, out, _ = ask(program, "--regex", "[0-9]{3} é", "--jsonl", QUESTION)
    start, delta, end = map(json.loads, out.splitlines())
    assert code == 0
    assert (start["event"], delta["text"], end["parsed"]) == ("start", end["response"], end["response"])
    assert end["response"].endswith(" é")


def test_a_choice_is_one_word_and_json_has_all_probabilities(program: Program) -> None:
    words = ("--choice", "yes, no,it depends", "Is NF4 a 4-bit format?")
    assert ask(program, *words) == (0, "yes\n", "")
    answer = json.loads(ask(program, "--json", *words)[1])
    validate(answer, "answer")
    assert answer["parsed"] == answer["response"] == "yes"
    assert list(answer["choices"]) == ["yes", "no", "it depends"]
    assert sum(answer["choices"].values()) == pytest.approx(1, abs=1e-6)
    drawn = {ask(program, "--temperature", "100", "--seed", str(seed), *words)[1] for seed in range(3)}
    assert drawn <= {"yes\n", "no\n", "it depends\n"}


def test_a_cut_answer_is_on_stderr_with_exit_code_8(program: Program) -> None:
    words = ("--schema", SCHEMA, "--max-new-tokens", "4", "--temperature", "0", QUESTION)
    code, out, errors = ask(program, *words)
    assert (code, out) == (8, "")
    partial, message, _ = errors.splitlines()
    assert partial.startswith('{"')
    assert message == "localgemma: The token limit was reached before the answer was complete."
    code, out, errors = ask(program, "--json", *words)
    assert (code, out) == (8, "")
    error = json.loads(errors)
    validate(error, "error")
    assert (error["error"]["kind"], error["error"]["partial"]) == ("incomplete", partial)


def test_only_the_first_code_block_is_extracted(program: Program) -> None:
    """The demo writes a command as a code block where it is asked for one."""
    question = "How do I start a chat?"
    whole = ask(program, "--temperature", "0", question)[1]
    code, out, errors = ask(program, "--temperature", "0", "-x", question)
    if "```" in whole:
        assert (code, errors) == (0, "")
        assert "```" not in out
        assert out in whole
    else:
        assert (code, out) == (8, "")
        assert errors.startswith(whole)
        assert "The answer has no code block." in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--schema", "{}", "--choice", "a,b", "Hi there"), "--schema and --choice cannot be used together."),
        (("--regex", "a", "-x", "Hi there"), "--regex and --extract cannot be used together."),
        (("--choice", "a", "Hi there"), "--choice needs two or more words."),
        (("-i", "--choice", "a,b", "Hi there"), "--interactive cannot be used with --choice."),
        (("--schema", '{"type": "strin"}', "Hi there"), "--schema cannot be used: strin is not a type."),
        (("--regex", "(", "Hi there"), "--regex cannot be used: unclosed group."),
    ],
)
def test_wrong_usage_is_refused_before_anything_loads(
    program: Program, words: tuple[str, ...], message: str
) -> None:
    code, out, errors = ask(program, *words)
    assert (code, out) == (2, "")
    assert errors.splitlines()[0] == f"localgemma: {message}"


class Written:
    """A renderer that keeps what it is given."""

    def __init__(self) -> None:
        self.text = ""
        self.answer: Answer | None = None

    def thinking(self, text: str) -> None:
        raise AssertionError

    def delta(self, text: str) -> None:
        self.text += text

    def finish(self, answer: Answer) -> None:
        self.answer = answer

    def abort(self) -> None:
        raise AssertionError


def finished(reason: str, error: LocalGemmaError | None = None) -> Finished:
    return Finished(reason, Usage(1, 0, 1), Timing(0, None, 0), error=error)  # type: ignore[arg-type]


def test_a_code_block_of_a_cut_answer_counts_if_it_is_whole() -> None:
    written = Written()
    show_typed(Answer("a\n```\nx = 1\n```\nand th", finished("length")), None, lambda: written)
    assert written.text == "x = 1\n"
    assert written.answer
    assert written.answer.parsed
    assert written.answer.parsed.value == "x = 1\n"


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        ("ye", "length", "The token limit was reached"),
        ("ye", "interrupted", "Stopped before the answer was complete"),
        ("ye", "error", "it broke"),
        ("```\nyes\n```", "stop", "The answer is not what it had to be: it is none of the choices"),
    ],
)
def test_what_is_not_whole_is_not_shown(text: str, reason: str, message: str) -> None:
    written = Written()
    error = LocalGemmaError("it broke.", "Mend it.") if reason == "error" else None
    with pytest.raises(IncompleteAnswer, match=message) as raised:
        show_typed(Answer(text, finished(reason, error)), Choices(("yes", "no")), lambda: written)
    assert raised.value.text == text
    assert written.text == ""


def test_an_answer_of_a_form_is_saved_like_any_other(program: Program) -> None:
    done = program("-m", "demo", "--session", "s", "--choice", "yes,no", "Is NF4 a 4-bit format?")
    assert done.stdout == "yes\n"
    shown = program("history", "show", "s")
    assert shown.stdout.count("yes") == 1
